"""`zk0 versus`: a federation against each client alone and all data in one place."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_rollout import parse_seeds
from flows.failure import one_clear_line
from flows.session_run import parse_overrides, settle_prefect


def versus(
    config: Annotated[Path, typer.Argument(help="A session file, such as deployments/sessions/lifts.toml.")],
    out: Annotated[Path, typer.Option(help="Where everything lives; the same folder again goes on.")],
    seeds: Annotated[str, typer.Option(help="Of training, such as 42-44 or 1,2,5.")] = "42-44",
    larger_batches: Annotated[
        bool,
        typer.Option(
            "--larger-batches",
            help="Centralised: a client's number of steps, batches as large as all clients' together.",
        ),
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting: --set rounds=5.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar; log lines instead.")] = False,
) -> None:
    """Train a session federated, each client alone, and all data in one place; judge all alike, with intervals.

    Equal steps and samples, the same start, one set of models for each seed. Writes report.html and results.json.
    """
    with one_clear_line():
        overrides, wanted = parse_overrides(settings or []), parse_seeds(seeds)
        settle_prefect()
        from flows.stack import some_server
        from flows.terminal import watching
        from zk0.session import load_session

        load_session(config, overrides)  # wrong input is told before a server is started for it
        with watching(quiet) as tell, some_server(Path.cwd(), tell):
            from flows.federated_vs_centralised import federated_vs_centralised

            page = federated_vs_centralised(
                config=str(config),
                overrides=overrides or None,
                seeds=wanted,
                folder=str(out),
                larger_batches=larger_batches,
            )
        show(Path(page).with_name("results.json"))
        typer.echo(f"report   {page}")


def show(results: Path) -> None:
    """The differences, better in green, worse in red."""
    import json

    from flows.cli_compare import show_differences
    from zk0.comparison import Difference

    found = json.loads(results.read_text(encoding="utf-8"))["contrasts"]
    for against in dict.fromkeys(one["against"] for one in found):
        rows = [
            Difference(
                metric=one["metric"],
                what=one["where"],
                pairs=one["units"] * one["seeds"],
                before=one["baseline"],
                after=one["federated"],
                change=one["change"],
                interval=one["interval"],
            )
            for one in found
            if one["against"] == against
        ]
        show_differences(f"federated against {against}", rows)
