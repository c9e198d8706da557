"""`zk0 data`: check, repair, split and measure one data set, without Prefect and without LeRobot."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.failure import one_clear_line
from zk0.errors import SettingsError

if TYPE_CHECKING:
    from zk0.records import DatasetReport, Statistics

data_app = typer.Typer(
    name="data",
    help="Check, repair, split and measure a data set before it takes part.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Uri = Annotated[str, typer.Argument(help="hf:user/name, user/name or local:/path.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")]
Rename = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="OLD=NEW",
        help="A feature key under its proper name: observation.images.top=observation.images.overhead",
    ),
]
Cache = Annotated[Path, typer.Option("--cache", help="Where downloads are kept.")]
CACHE = Path("~/.cache/zk0")


@data_app.command()
def check(
    uri: Uri,
    quick: Annotated[bool, typer.Option("--quick", help="Decode no video.")] = False,
    session: Annotated[
        Path | None, typer.Option(help="A session file, whose contract the data set must fit as well.")
    ] = None,
    rename: Rename = None,
    as_json: Json = False,
    cache: Cache = CACHE,
) -> None:
    """Say every broken rule of a data set; exit code 1 if it may not take part.

    URI is hf:user/name, user/name or local:/path.
    """
    with one_clear_line():
        from zk0.robot.check import check_contract, check_dataset
        from zk0.robot.folder import folder_of
        from zk0.session import load_session

        renames = parse_renames(rename or [])
        contract = load_session(session).contract if session else None
        root = folder_of(uri, cache.expanduser())
        report = check_dataset(root, dataset=uri, quick=quick, rename_map=renames)
        if contract is not None:
            findings = (*report.findings, *check_contract(report, contract, renames))
            report = report.model_copy(update={"findings": findings})
        if as_json:
            typer.echo(report.model_dump_json(indent=2))
        else:
            show_report(report)
    if report.errors:
        raise typer.Exit(1)


@data_app.command()
def repair(
    uri: Uri,
    target: Annotated[Path, typer.Argument(help="A new folder for the repaired copy.")],
    rename: Rename = None,
    as_json: Json = False,
    cache: Cache = CACHE,
) -> None:
    """Write a repaired copy that passes the check into a new folder TARGET; the original stays as it is.

    URI is hf:user/name, user/name or local:/path.
    """
    with one_clear_line():
        from zk0.robot.folder import folder_of
        from zk0.robot.repair import repair_dataset

        root = folder_of(uri, cache.expanduser())
        done, report = repair_dataset(root, target, dataset=uri, rename_map=parse_renames(rename or []))
        if as_json:
            typer.echo(done.model_dump_json(indent=2))
            return
        typer.echo(f"repairs  {', '.join(done.repairs) or 'none: nothing was at fault'}")
        if done.dropped:
            typer.echo(f"dropped  episodes {', '.join(map(str, done.dropped))}")
        typer.echo(f"copy     {target} ({report.episodes} episodes, {report.frames} frames), which passes the check")


@data_app.command()
def split(
    uri: Uri,
    holdout: Annotated[int, typer.Option(min=0, help="The last N episodes judge and are not trained on.")] = 1,
    partitions: Annotated[int, typer.Option(min=1, help="Clients that share the rest, by episode_index % N.")] = 1,
    against: Annotated[
        list[str] | None, typer.Option(help="Another data set that must share no episode with this one.")
    ] = None,
    as_json: Json = False,
    cache: Cache = CACHE,
) -> None:
    """Show which episodes train and which judge, and prove that another data set shares none of them.

    URI is hf:user/name, user/name or local:/path.
    """
    with one_clear_line():
        import json

        from zk0.robot.digest import dataset_digests
        from zk0.robot.folder import folder_of
        from zk0.split import assert_disjoint, split_episodes

        digests = {place: dataset_digests(folder_of(place, cache.expanduser())) for place in (uri, *(against or ()))}
        splits = [split_episodes(list(digests[uri]), holdout, index, partitions) for index in range(partitions)]
        assert_disjoint({place: list(found.values()) for place, found in digests.items()})
        if as_json:
            typer.echo(json.dumps([s.model_dump(mode="json") for s in splits], indent=2))
            return
        for index, found in enumerate(splits):
            typer.echo(f"client {index}   trains on {len(found.train)} episodes: {', '.join(map(str, found.train))}")
        typer.echo(f"held out   {', '.join(map(str, splits[0].held_out)) or 'none'}")
        for place in against or ():
            typer.echo(f"no episode is shared with {place}")


@data_app.command()
def stats(
    uri: Uri,
    holdout: Annotated[int, typer.Option(min=0, help="Leave out the last N episodes, which judge.")] = 1,
    rename: Rename = None,
    as_json: Json = False,
    cache: Cache = CACHE,
) -> None:
    """Moments of state and action over the training episodes: all that a client says of its frames.

    URI is hf:user/name, user/name or local:/path.
    """
    with one_clear_line():
        from zk0.robot.check import check_dataset
        from zk0.robot.digest import dataset_digests
        from zk0.robot.folder import folder_of
        from zk0.robot.statistics import measure
        from zk0.split import split_episodes

        renames = parse_renames(rename or [])
        root = folder_of(uri, cache.expanduser())
        train = split_episodes(list(dataset_digests(root, renames)), holdout).train
        found = measure(root, train, renames)
        if as_json:
            typer.echo(found.model_dump_json(indent=2))
        else:
            show_statistics(found, check_dataset(root, dataset=uri, quick=True, rename_map=renames))


def parse_renames(pairs: list[str]) -> dict[str, str]:
    """`OLD=NEW` pairs.

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


def show_report(report: "DatasetReport") -> None:
    """Facts and findings of a data set as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
    }
    for name, value in facts.items():
        console.print(Text(f"{name:9s} {'unknown' if value in (None, '') else value}"))
    if report.findings:
        table = Table(show_lines=True)
        table.add_column("rule", no_wrap=True)
        table.add_column("what", overflow="fold")
        for f in sorted(report.findings, key=lambda f: f.severity):
            rule = Text(f"{f.severity}\n{f.rule}", style="red" if f.severity == "error" else "yellow")
            lines = [("where", f.where), ("found", f.found), ("expected", f.expected), ("repair", f.repair or "none")]
            table.add_row(rule, Text("\n".join(f"{name:9s}{value}" for name, value in lines)))
        console.print(table)
    errors, warnings = len(report.errors), len(report.findings) - len(report.errors)
    verdict = "may take part" if not errors else "may not take part"
    style = "red" if errors else "green"
    console.print(Text(f"{report.dataset}: {errors} errors, {warnings} warnings: {verdict}", style=style))
    if errors and all(f.repair for f in report.errors):
        console.print(Text(f"zk0 data repair {report.dataset} FOLDER writes a copy without these faults"))


def show_statistics(found: "Statistics", report: "DatasetReport") -> None:
    """Moments of each joint as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for what, moments, names in (
        ("state", found.state, report.state_names),
        ("action", found.action, report.action_names),
    ):
        unit = report.units or "stored units"
        table = Table(title=f"{what}, {moments.count} training frames, {unit}", title_justify="left")
        table.add_column("joint")
        for heading in ("mean", "std", "min", "max"):
            table.add_column(heading, justify="right")
        for joint, values in enumerate(zip(moments.mean, moments.std, moments.min, moments.max, strict=True)):
            name = names[joint] if joint < len(names) else str(joint)
            table.add_row(name, *(f"{v:.3f}" for v in values))
        console.print(table)
