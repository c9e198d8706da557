"""`zk0 versus`: compare federated training with local-only and centralized training, or settings with each other."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.rollout_command import parse_seeds
from flows.cli.session_run import parse_overrides, set_prefect_defaults
from zk0.errors import SettingsError
from zk0.storage.writable import check_writable


def versus(
    config: Annotated[Path, typer.Argument(help="Session file, such as deployments/sessions/lifts.toml.")],
    out: Annotated[
        Path, typer.Option(help="Folder of all models and results; run again with the same folder to continue.")
    ],
    seeds: Annotated[str, typer.Option(help="Training seeds, such as 42-44 or 1,2,5.")] = "42-44",
    larger_batches: Annotated[
        bool,
        typer.Option(
            "--larger-batches",
            help="Centralized training: as many steps as one client, batches as large as all clients' together.",
        ),
    ] = False,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V1,V2",
            help="Compare values of a setting instead: --vary aggregation.strategy=fedavg,scaffold; with several, all "
            "combinations. The first one is what the others are compared with.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting: --set rounds=5.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print log lines instead of a progress bar.")] = False,
) -> None:
    """Compare federated training with local-only and centralized training, or settings, with 95 % intervals.

    For each seed, trains the session federated, each client alone, and one model on all data: from the same weights,
    with equal optimizer steps and samples, evaluated on the same episodes. Writes report.html and results.json.

    With --vary, runs the session with each combination of values and each seed instead. Writes tables (Markdown, LaTeX,
    CSV, Parquet) and charts (SVG, PDF).
    """
    with errors_to_exit_codes():
        overrides, wanted, varied = parse_overrides(settings or []), parse_seeds(seeds), parse_varied(vary or [])
        if varied and larger_batches:
            raise SettingsError("--larger-batches with --vary: there is no centralized training to compare with")
        check_writable(out, "--out")
        set_prefect_defaults()
        from flows.cli.terminal import line_on_interrupt, session_progress
        from flows.prefect_local.temporary_server import configured_or_temporary_server
        from flows.session_loading import load_session_to_run

        for combination in combinations(varied):  # wrong input ends the command before a server is started
            load_session_to_run(config, overrides | combination)
        common = {"config": str(config), "overrides": overrides or None, "seeds": wanted, "folder": str(out)}
        hint = "; finished sessions are kept: run the command again with the same --out"
        with (
            line_on_interrupt(lambda: hint),
            session_progress(quiet) as on_status,
            configured_or_temporary_server(Path.cwd(), on_status),
        ):
            result = _run_variants(varied, common) if varied else _run_baselines(larger_batches, common)
        if varied:
            typer.echo(f"{result.read_text(encoding='utf-8')}\ntables and charts   {result.parent}")
            return
        print_benchmark(result.with_name("results.json"))
        typer.echo(f"report   {result}")


def _run_variants(varied: dict[str, list[Any]], common: dict[str, Any]) -> Path:
    from flows.settings_comparison import settings_comparison

    return Path(settings_comparison(varied, **common))


def _run_baselines(larger_batches: bool, common: dict[str, Any]) -> Path:
    from flows.federated_vs_centralized import federated_vs_centralized

    return Path(federated_vs_centralized(larger_batches=larger_batches, **common))


def parse_varied(pairs: list[str]) -> dict[str, list[Any]]:
    """Parse the varied settings; a value is TOML, or else text.

    >>> parse_varied(["aggregation.strategy=fedavg,scaffold", "training.proximal_mu=0,0.01"])
    {'aggregation.strategy': ['fedavg', 'scaffold'], 'training.proximal_mu': [0, 0.01]}

    Raises:
        SettingsError: a pair has no name or no value, or a name is given twice.
    """
    found: dict[str, list[Any]] = {}
    for pair in pairs:
        name, _, values = pair.partition("=")
        if name in found or not name or not all(part.strip() for part in values.split(",")):
            raise SettingsError(f"--vary {pair}: expected NAME=V1,V2, such as training.proximal_mu=0,0.01, once a name")
        found[name] = [parse_overrides([f"{name}={part.strip()}"])[name] for part in values.split(",")]
    return found


def combinations(varied: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return the overrides of each combination; without varied settings, one without overrides."""
    if not varied:
        return [{}]
    from zk0.stats.variant_comparison import variants_of

    return [one.overrides for one in variants_of(varied)]


def print_benchmark(results: Path) -> None:
    """Print the differences to each baseline; significant ones are marked as better (green) or worse (red)."""
    import json

    from flows.cli.compare_command import print_differences
    from zk0.stats.model_comparison import ModelDifference

    found = json.loads(results.read_text(encoding="utf-8"))["differences"]
    for baseline in dict.fromkeys(one["baseline"] for one in found):
        rows = [
            ModelDifference(
                metric=one["metric"],
                subject=one["evaluated_on"],
                pairs=one["units"] * one["seeds"],
                before=one["baseline_value"],
                after=one["federated_value"],
                change=one["change"],
                interval=one["interval"],
            )
            for one in found
            if one["baseline"] == baseline
        ]
        print_differences(f"federated against {baseline}", rows)
