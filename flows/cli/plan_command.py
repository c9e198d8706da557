"""`zk0 plan`: what a session needs of this machine, before anything is downloaded or started."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.session_run import parse_overrides

if TYPE_CHECKING:
    from zk0.policy.policy_shapes import PolicyShapes
    from zk0.resources.host_capacity import HostCapacity
    from zk0.resources.run_time import Speed
    from zk0.resources.session_estimate import SessionEstimate
    from zk0.settings.session import Session


def plan(
    config: Annotated[Path, typer.Argument(help="Session file, such as deployments/sessions/demo.toml.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting: --set rounds=5.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure this machine again.")] = False,
) -> None:
    """Estimate time, memory, disk space and traffic of a session by stage, for this machine.

    Only metadata is fetched. The machine's speed is measured in a few seconds, once for each kind of policy.
    """
    with errors_to_exit_codes():
        from flows.session_loading import check_session_inputs, load_session_to_run
        from zk0.policy.policy_shapes import PolicyShapes
        from zk0.resources.estimate_text import shortage_lines
        from zk0.resources.session_needs import session_needs
        from zk0.resources.suggestions import find_shortages

        session = load_session_to_run(config, parse_overrides(settings or []))
        _tell("reading the metadata of datasets and policy")
        check_session_inputs(session)
        needs = session_needs(session)
        if isinstance(needs.policy, PolicyShapes):
            speed = _speed(session, needs.policy, needs.machine, fresh)
            needs = needs.model_copy(update={"speed": speed})
        estimate = needs.estimate()
        if as_json:
            typer.echo(estimate.model_dump_json(indent=2))
            return
        _print_table(estimate)
        for line in shortage_lines(find_shortages(needs)):
            typer.echo(line)


def _speed(session: "Session", shapes: "PolicyShapes", machine: "HostCapacity", fresh: bool) -> "Speed":
    """Return the speed of this machine, measured now unless it was measured before."""
    from zk0.resources.speed_cache import read_speed, write_speed

    if not fresh and (known := read_speed(session, shapes, machine)) is not None:
        return known
    _tell("measuring this machine (importing PyTorch takes longest)")
    from zk0.resources.speed_measurement import measure_speed

    speed = measure_speed(shapes, len(session.contract.cameras), session.training, machine.has_gpu)
    write_speed(session, shapes, machine, speed)
    return speed


def _print_table(estimate: "SessionEstimate") -> None:
    from rich.console import Console
    from rich.table import Table

    from zk0.resources.disk_text import disk_line
    from zk0.resources.estimate_text import memory_line, stage_rows, total_row

    table = Table(*("stage", "time", "memory", "disk", "traffic"))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in stage_rows(estimate):
        table.add_row(*row)
    table.add_section()
    table.add_row(*total_row(estimate))
    console = Console()
    console.print(table)
    console.print(memory_line(estimate), soft_wrap=True)
    console.print(disk_line(estimate.disk), soft_wrap=True)
    if estimate.speed is not None:
        console.print(f"times are rough: {estimate.speed.source}", soft_wrap=True)


def _tell(text: str) -> None:
    typer.echo(f"zk0 plan: {text} ...", err=True)
