"""`zk0 rollout`: a saved policy in closed loop with the simulated arm."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.failure import one_clear_line
from zk0.errors import SettingsError

if TYPE_CHECKING:
    from zk0.records import Rollout
    from zk0.session import RolloutSettings, Session


def rollout(
    checkpoint: Annotated[str, typer.Argument(help="A policy folder saved by lerobot or zk0, or a name on the Hub.")],
    out: Annotated[Path, typer.Option(help="Where results and films go.")],
    task: Annotated[
        list[str] | None, typer.Option(help="A task of the simulator, such as lift-red; repeat it.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 9000-9019 or 1,2,5: one attempt each.")] = None,
    session: Annotated[
        Path | None, typer.Option(help="A session file whose simulator, rollout and video settings are used.")
    ] = None,
    films: Annotated[int | None, typer.Option(min=0, help="Attempts of each task that are filmed.")] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="overhead=observation.images.top, where names differ; repeat it."),
    ] = None,
    dataset: Annotated[bool, typer.Option("--dataset", help="Keep the attempts as a LeRobot data set too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")] = False,
) -> None:
    """Let a policy try tasks of the simulated SO-101 arm and count how often it succeeds.

    Attempts that this very policy has made in OUT before are only read.
    """
    with one_clear_line():
        import json
        from datetime import datetime

        from zk0.session import SimulatorSettings, VideoSettings, load_session
        from zk0.simulator.task import find_task

        asked = load_session(session) if session else None
        wanted = attempts_asked_for(asked, task or [], seeds, dataset)
        for name in wanted.tasks:
            find_task(name)
        video = asked.video if asked else VideoSettings()
        video = video if films is None else video.model_copy(update={"rollouts": films})
        settings = (asked.simulator if asked else SimulatorSettings(), wanted, video)
        cameras = parse_cameras(camera or [])
        from zk0.training.saved import roll_out_saved

        found: list[Rollout] = []
        for made in roll_out_saved(checkpoint, out, settings, cameras, datetime.now().astimezone()):
            found += made
            if not as_json:
                show_attempts(made, out)
        if as_json:
            typer.echo(json.dumps([r.model_dump(mode="json") for r in found], indent=2))


def attempts_asked_for(
    session: "Session | None", tasks: Sequence[str], seeds: str | None, dataset: bool
) -> "RolloutSettings":
    """A session's settings, or the defaults, with what stands on the command line."""
    from zk0.session import RolloutSettings

    values = (session.rollout if session else RolloutSettings()).model_dump()
    if tasks:
        values["tasks"] = tuple(tasks)
    if seeds is not None:
        values["seeds"] = parse_seeds(seeds)
    if not values["tasks"]:
        raise SettingsError("zk0 rollout: no task; give --task lift-red, or --session with rollout.tasks")
    return RolloutSettings(**values | {"keep_dataset": dataset or values["keep_dataset"]})


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds by commas and ranges, each once.

    >>> parse_seeds("9000-9002,7")
    (9000, 9001, 9002, 7)
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SettingsError(f"--seeds {text}: {part!r} is no seed and no range, such as 9000-9019 or 1,2,5")
        found += range(int(first), int(last if dash else first) + 1)
    if not found or len(set(found)) < len(found):
        raise SettingsError(f"--seeds {text}: {len(found)} seeds, {len(set(found))} different; expected each once")
    return tuple(found)


def parse_cameras(pairs: Sequence[str]) -> dict[str, str]:
    """Camera of the simulator -> feature key of the policy."""
    found = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise SettingsError(f"--camera {pair}: expected OURS=THEIRS, such as overhead=observation.images.top")
        found[ours.strip()] = theirs.strip()
    return found


def show_attempts(made: "Sequence[Rollout]", out: Path) -> None:
    """One line for a task, one for each of its films."""
    from statistics import median

    from zk0.interval import wilson

    done = [r.duration_seconds for r in made if r.success]
    low, high = wilson(len(done), len(made))
    after = f", median time to success {median(done):.1f} s" if done else ""
    typer.echo(
        f"{made[0].task:22s} {len(done)} of {len(made)} attempts succeeded "
        f"(95 % interval {100 * low:.0f} % to {100 * high:.0f} %){after}"
    )
    for one in made:
        if one.video:
            typer.echo(f"  film   {out / one.video}")
        if one.video_fault:
            typer.echo(f"  no film of seed {one.seed}: {one.video_fault}")
