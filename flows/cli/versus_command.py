"""`zk0 versus`: compare federated training with local-only and centralized training."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.rollout_command import parse_seeds
from flows.cli.session_run import parse_overrides, set_prefect_defaults
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
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting: --set rounds=5.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print log lines instead of a progress bar.")] = False,
) -> None:
    """Compare federated training with local-only and centralized training, with 95 % intervals.

    For each seed, trains the session federated, each client alone, and one model on all data: from the same weights,
    with equal optimizer steps and samples, evaluated on the same episodes. Writes report.html and results.json.
    """
    with errors_to_exit_codes():
        overrides, wanted = parse_overrides(settings or []), parse_seeds(seeds)
        check_writable(out, "--out")
        set_prefect_defaults()
        from flows.cli.terminal import session_progress
        from flows.prefect_local.temporary_server import configured_or_temporary_server
        from flows.session_loading import load_session_to_run

        load_session_to_run(config, overrides)  # wrong input ends the command before a server is started
        with session_progress(quiet) as on_status, configured_or_temporary_server(Path.cwd(), on_status):
            from flows.federated_vs_centralized import federated_vs_centralized

            page = federated_vs_centralized(
                config=str(config),
                overrides=overrides or None,
                seeds=wanted,
                folder=str(out),
                larger_batches=larger_batches,
            )
        print_benchmark(Path(page).with_name("results.json"))
        typer.echo(f"report   {page}")


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
