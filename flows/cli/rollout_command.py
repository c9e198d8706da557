"""`zk0 rollout`: run a saved policy in closed loop on the simulated arm."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from zk0.errors import SettingsError
from zk0.storage.writable import check_writable

if TYPE_CHECKING:
    from zk0.records import Rollout
    from zk0.settings.evaluation_settings import RolloutSettings
    from zk0.settings.session import Session


def rollout(
    checkpoint: Annotated[
        str,
        typer.Argument(help="Folder of a policy or of a session, a name on the Hub, or base."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of results and videos.")],
    task: Annotated[
        list[str] | None, typer.Option(help="Task of the simulator, such as lift-red; may be given several times.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, such as 9000-9019 or 1,2,5; one attempt per seed.")] = None,
    session: Annotated[
        Path | None, typer.Option(help="Session file whose simulator, rollout and video settings are used.")
    ] = None,
    films: Annotated[
        int | None, typer.Option(min=0, help="Number of attempts per task that are rendered as videos.")
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIMULATOR=POLICY",
            help="Name a camera of the policy: overhead=observation.images.top; may be given several times.",
        ),
    ] = None,
    dataset: Annotated[bool, typer.Option("--dataset", help="Save the attempts as a LeRobot dataset too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Run a policy on tasks of the simulated SO-101 arm and report its success rates.

    Without --session, the policy executes as many actions of a chunk as lerobot-eval does: n_action_steps of its
    config.json.

    Attempts of the same policy that are in OUT already are only read.
    """
    with errors_to_exit_codes():
        check_writable(out, "--out")
        import json
        from datetime import datetime

        from flows.cli.policy_argument import find_policy
        from flows.packaged_files import find_session_file
        from zk0.settings.dataset_settings import SimulatorSettings
        from zk0.settings.evaluation_settings import VideoSettings
        from zk0.settings.loading import load_session
        from zk0.simulator.tasks import find_task

        file = load_session(find_session_file(session)) if session else None
        wanted = rollout_settings(file, task or [], seeds, dataset)
        for name in wanted.tasks:
            find_task(name)
        policy = find_policy(checkpoint)
        video = file.video if file else VideoSettings()
        video = video if films is None else video.model_copy(update={"rollouts": films})
        cameras = parse_cameras(camera or [])
        if file is None and (steps := executed_steps(policy)):
            wanted = wanted.model_copy(update={"replan_steps": steps})
        settings = (file.simulator if file else SimulatorSettings(), wanted, video)
        from zk0.evaluation.saved_rollout import roll_out_saved_policy

        found: list[Rollout] = []
        for made in roll_out_saved_policy(policy, out, settings, cameras, datetime.now().astimezone()):
            found += made
            if not as_json:
                print_attempts(made, out)
        if as_json:
            typer.echo(json.dumps([r.model_dump(mode="json") for r in found], indent=2))


def executed_steps(checkpoint: str) -> int | None:
    """Return n_action_steps of a policy's config.json; None if it has no such number."""
    from zk0.policy.published_config import read_published_config, resolve_policy_path

    steps = read_published_config(resolve_policy_path(checkpoint)).get("n_action_steps")
    return steps if isinstance(steps, int) and steps > 0 else None


def rollout_settings(
    session: "Session | None", tasks: Sequence[str], seeds: str | None, dataset: bool
) -> "RolloutSettings":
    """Return a session's rollout settings, or the defaults, with the options of the command line in their place."""
    from zk0.settings.evaluation_settings import RolloutSettings

    values = (session.rollout if session else RolloutSettings()).model_dump()
    if tasks:
        values["tasks"] = tuple(tasks)
    if seeds is not None:
        values["seeds"] = parse_seeds(seeds)
    if not values["tasks"]:
        raise SettingsError("zk0 rollout: no task; give --task lift-red, or --session with rollout.tasks")
    return RolloutSettings(**values | {"keep_dataset": dataset or values["keep_dataset"]})


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse seeds and ranges of seeds, separated by commas.

    >>> parse_seeds("9000-9002,7")
    (9000, 9001, 9002, 7)
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SettingsError(
                f"--seeds {text}: {part!r} is no seed and no range; expected such as 9000-9019 or 1,2,5"
            )
        if dash and int(first) > int(last):
            raise SettingsError(f"--seeds {text}: {part.strip()} runs backwards; expected {last}-{first}")
        found += range(int(first), int(last if dash else first) + 1)
    if not found or len(set(found)) < len(found):
        raise SettingsError(f"--seeds {text}: {len(found)} seeds, {len(set(found))} different; expected each once")
    return tuple(found)


def parse_cameras(pairs: Sequence[str]) -> dict[str, str]:
    """Parse `SIMULATOR=POLICY` pairs into: camera of the simulator -> feature key of the policy."""
    found = {}
    for pair in pairs:
        simulated, equals, feature = pair.partition("=")
        if not (simulated and equals and feature):
            raise SettingsError(f"--camera {pair}: expected SIMULATOR=POLICY, such as overhead=observation.images.top")
        found[simulated.strip()] = feature.strip()
    return found


def print_attempts(made: "Sequence[Rollout]", out: Path) -> None:
    """Print one line for a task, and one for each of its videos."""
    from statistics import median

    from zk0.stats.intervals import wilson_interval

    done = [r.duration_seconds for r in made if r.success]
    low, high = wilson_interval(len(done), len(made))
    after = f", median time to success {median(done):.1f} s" if done else ""
    typer.echo(
        f"{made[0].task:22s} {len(done)} of {len(made)} attempts succeeded "
        f"(95 % interval {100 * low:.0f} % to {100 * high:.0f} %){after}"
    )
    for one in made:
        if one.video:
            typer.echo(f"  video  {out / one.video}")
        if one.video_error:
            typer.echo(f"  no video of seed {one.seed}: {one.video_error}")
