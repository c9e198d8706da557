"""`zk0 data`: check, repair, merge, split and measure datasets, without Prefect."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.command_group import command_group
from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.program_name import program_name
from zk0.errors import SettingsError
from zk0.records import JointUnits
from zk0.settings.home_folder import expand_home
from zk0.storage.writable import check_writable

if TYPE_CHECKING:
    from zk0.records import DatasetReport, Statistics

data_app = command_group(
    "data",
    "Check, repair, merge, split and measure a dataset before it joins a federation.",
)


def _with_scheme(dataset: str) -> str:
    from zk0.settings.dataset_settings import with_scheme

    return with_scheme(dataset)


UriArgument = Annotated[
    str,
    typer.Argument(
        help="Dataset: hf:user/name, hf:user/name@REVISION, local:/path or the absolute path.", callback=_with_scheme
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
RenameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="OLD=NEW",
        help="Rename a feature key: observation.images.top=observation.images.overhead; may be given several times.",
    ),
]
CacheOption = Annotated[Path, typer.Option("--cache", help="Folder of downloads.")]
DEFAULT_CACHE = Path("~/.cache/zk0")


@data_app.command("check")
def check_command(
    uri: UriArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Decode no video.")] = False,
    session: Annotated[Path | None, typer.Option(help="Session file; the dataset must also fit its contract.")] = None,
    rename: RenameOption = None,
    units: Annotated[
        JointUnits | None, typer.Option(help="Units of state and action; with --session, for its contract.")
    ] = None,
    as_json: JsonOption = False,
    cache: CacheOption = DEFAULT_CACHE,
) -> None:
    """Check a dataset and print every broken rule; exit code 1 if it may not take part.

    URI is hf:user/name, hf:user/name@REVISION or local:/path.
    """
    with errors_to_exit_codes():
        import json

        from flows.cli.frame_progress_display import shown_frames
        from flows.packaged_files import find_session_file
        from zk0.data.check import check_dataset
        from zk0.data.check.contract_rules import with_contract
        from zk0.data.locate import locate_unchecked
        from zk0.settings.loading import load_session

        renames = parse_renames(rename or [])
        contract = load_session(find_session_file(session)).contract if session else None
        root = locate_unchecked(uri, expand_home(cache))
        with shown_frames() as progress:
            report = check_dataset(root, dataset=uri, quick=quick, rename_map=renames, progress=progress)
        if contract is not None:
            report = with_contract(report, contract, renames, units)
        if as_json:
            tags = {"quality": report.quality, "episode_rules": report.episode_rules}
            typer.echo(json.dumps(report.model_dump(mode="json") | tags, indent=2))
        else:
            print_report(report)
            if contract is None:
                typer.echo("no federation's rules were checked: --session FILE compares the dataset with its contract")
    if report.errors:
        raise typer.Exit(1)


@data_app.command("list-rules")
def list_rules_command(as_json: JsonOption = False) -> None:
    """Print every rule of the check: id, severity, what must hold, and its repairs."""
    with errors_to_exit_codes():
        import json
        from dataclasses import asdict

        from zk0.data.check.rule_catalog import RULE_GROUPS

        rules = [rule for group in RULE_GROUPS for rule in group.rules]
        if as_json:
            typer.echo(json.dumps([asdict(rule) for rule in rules], indent=2))
            return
        for rule in rules:
            repairs = f" [repair: {', '.join(rule.repairs)}]" if rule.repairs else ""
            typer.echo(f"{rule.severity:7s}  {rule.id}: {rule.meaning}{repairs}")


@data_app.command("repair")
def repair_command(
    uri: UriArgument,
    target: Annotated[Path, typer.Argument(help="New folder for the repaired copy.")],
    rename: RenameOption = None,
    as_json: JsonOption = False,
    cache: CacheOption = DEFAULT_CACHE,
) -> None:
    """Write a repaired copy that passes the check into a new folder TARGET; the original stays as it is.

    URI is hf:user/name, hf:user/name@REVISION or local:/path.
    """
    with errors_to_exit_codes():
        from flows.cli.frame_progress_display import shown_frames
        from zk0.data.locate import locate_unchecked
        from zk0.data.repair.repair_dataset import repair_dataset

        check_writable(target, "TARGET")
        root = locate_unchecked(uri, expand_home(cache))
        renames = parse_renames(rename or [])
        with shown_frames() as progress:
            done, report = repair_dataset(root, target, dataset=uri, rename_map=renames, progress=progress)
        if as_json:
            typer.echo(done.model_dump_json(indent=2))
            return
        typer.echo(f"repairs  {', '.join(done.repairs) or 'none: no rule was broken'}")
        if done.dropped:
            typer.echo(f"dropped  episodes {', '.join(map(str, done.dropped))}")
        typer.echo(f"copy     {target} ({report.episodes} episodes, {report.frames} frames), which passes the check")


@data_app.command("merge")
def merge_command(
    uris: Annotated[
        list[str], typer.Argument(metavar="URI...", help="Two or more datasets, in the order of their episodes.")
    ],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the merged dataset.")],
    robot_type: Annotated[
        str | None,
        typer.Option(help="LeRobot's word for the robot, where the datasets of one kind of arm have several."),
    ] = None,
    as_json: JsonOption = False,
    cache: CacheOption = DEFAULT_CACHE,
) -> None:
    """Check datasets of one robot, and write their episodes as one dataset; the originals stay as they are.

    URI is hf:user/name, hf:user/name@REVISION or local:/path. Features that not all of them have in the same form,
    such as LeRobot's intervention, are left out; cameras, joints, units and frame rate must agree.
    """
    with errors_to_exit_codes():
        from flows.cli.frame_progress_display import shown_frames
        from zk0.data.locate import locate_unchecked
        from zk0.data.merge import merge_datasets

        check_writable(output, "--output")
        roots = {uri: locate_unchecked(uri, expand_home(cache)) for uri in map(_with_scheme, uris)}
        with shown_frames() as progress:
            done = merge_datasets(roots, output, robot_type=robot_type, progress=progress)
        if as_json:
            typer.echo(done.model_dump_json(indent=2))
            return
        for feature, names in done.left_out.items():
            typer.echo(f"left out  {feature}, which only {', '.join(names)} has in this form")
        report = done.report
        typer.echo(f"merged    {output} ({report.episodes} episodes, {report.frames} frames), which passes the check")


@data_app.command("split")
def split_command(
    uri: UriArgument,
    holdout: Annotated[
        int, typer.Option(min=0, help="Number of episodes at the end that are held out for evaluation.")
    ] = 1,
    partitions: Annotated[
        int, typer.Option(min=1, help="Number of clients that share the other episodes, by episode_index % N.")
    ] = 1,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Another dataset that must share no episode with this one; may be given several times."),
    ] = None,
    as_json: JsonOption = False,
    cache: CacheOption = DEFAULT_CACHE,
) -> None:
    """Print which episodes are trained on and which are held out; check that another dataset shares no episode.

    URI is hf:user/name, hf:user/name@REVISION or local:/path.
    """
    with errors_to_exit_codes():
        import json

        from zk0.data.episode_digests import dataset_digests
        from zk0.data.locate import locate_unchecked
        from zk0.data.split import assert_disjoint, split_episodes

        digests = {one: dataset_digests(locate_unchecked(one, expand_home(cache))) for one in (uri, *(against or ()))}
        splits = [split_episodes(list(digests[uri]), holdout, index, partitions) for index in range(partitions)]
        assert_disjoint({one: list(found.values()) for one, found in digests.items()})
        if as_json:
            typer.echo(json.dumps([s.model_dump(mode="json") for s in splits], indent=2))
            return
        for index, found in enumerate(splits):
            typer.echo(f"client {index}   trains on {len(found.train)} episodes: {', '.join(map(str, found.train))}")
        typer.echo(f"held out   {', '.join(map(str, splits[0].held_out)) or 'none'}")
        for other in against or ():
            typer.echo(f"no episode is shared with {other}")


@data_app.command("stats")
def stats_command(
    uri: UriArgument,
    holdout: Annotated[int, typer.Option(min=0, help="Number of episodes at the end that are left out.")] = 1,
    rename: RenameOption = None,
    as_json: JsonOption = False,
    cache: CacheOption = DEFAULT_CACHE,
) -> None:
    """Print mean, std, min and max of state and action over the training episodes: the statistics that a client sends.

    URI is hf:user/name, hf:user/name@REVISION or local:/path.
    """
    with errors_to_exit_codes():
        from zk0.data.check import check_dataset
        from zk0.data.episode_digests import dataset_digests
        from zk0.data.locate import locate_unchecked
        from zk0.data.split import split_episodes
        from zk0.data.statistics import measure_statistics

        renames = parse_renames(rename or [])
        root = locate_unchecked(uri, expand_home(cache))
        train = split_episodes(list(dataset_digests(root, renames)), holdout).train
        found = measure_statistics(root, train, renames)
        if as_json:
            typer.echo(found.model_dump_json(indent=2))
        else:
            print_statistics(found, check_dataset(root, dataset=uri, quick=True, rename_map=renames))


def parse_renames(pairs: list[str]) -> dict[str, str]:
    """Parse `OLD=NEW` pairs.

    >>> parse_renames(["observation.images.top=observation.images.overhead"])
    {'observation.images.top': 'observation.images.overhead'}
    """
    found = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise SettingsError(f"--rename {pair}: expected OLD=NEW")
        found[old.strip()] = new.strip()
    return found


def print_report(report: "DatasetReport") -> None:
    """Print the properties and the findings of a dataset."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from zk0.data.check.quality import describe_quality

    console = Console()
    facts = {
        "episodes": report.episodes,
        "frames": report.frames,
        "fps": None if report.fps is None else f"{report.fps:g}",
        "robot": report.robot_type,
        "cameras": ", ".join(report.cameras),
        "joints": ", ".join(report.state_names),
        "units": report.units,
        "tasks": "; ".join(report.tasks),
        "quality": describe_quality(report),
    }
    for name, value in facts.items():
        console.print(Text(f"{name:9s} {'unknown' if value in (None, '') else value}"))
    if report.findings:
        table = Table(show_lines=True)
        table.add_column("rule", no_wrap=True)
        table.add_column("finding", overflow="fold")
        for f in sorted(report.findings, key=lambda f: f.severity):
            rule = Text(f"{f.severity}\n{f.rule}", style="red" if f.severity == "error" else "yellow")
            lines = [("where", f.where), ("found", f.found), ("expected", f.expected), ("repair", f.repair or "none")]
            table.add_row(rule, Text("\n".join(f"{name:9s}{value}" for name, value in lines)))
        console.print(table)
    errors, warnings = len(report.errors), len(report.findings) - len(report.errors)
    conclusion = "may take part" if not errors else "may not take part"
    style = "red" if errors else "green"
    console.print(Text(f"{report.dataset}: {errors} errors, {warnings} warnings: {conclusion}", style=style))
    if errors and all(f.repair for f in report.errors):
        command = f"{program_name()} data repair {shlex.quote(report.dataset)} FOLDER"
        console.print(Text(f"{command} writes a copy without these errors"))


def print_statistics(found: "Statistics", report: "DatasetReport") -> None:
    """Print mean, std, min and max of each joint as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for quantity, moments, names in (
        ("state", found.state, report.state_names),
        ("action", found.action, report.action_names),
    ):
        unit = report.units or "stored units"
        table = Table(title=f"{quantity}, {moments.count} training frames, {unit}", title_justify="left")
        table.add_column("joint")
        for heading in ("mean", "std", "min", "max"):
            table.add_column(heading, justify="right")
        for joint, values in enumerate(zip(moments.mean, moments.std, moments.min, moments.max, strict=True)):
            name = names[joint] if joint < len(names) else str(joint)
            table.add_row(name, *(f"{v:.3f}" for v in values))
        console.print(table)
