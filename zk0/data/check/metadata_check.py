"""What `meta/info.json` alone tells about the datasets of a session, before any data is fetched."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from zk0.data.check.admission import wrong_episode_count
from zk0.data.check.contract_rules import check_same_rate, with_contract
from zk0.data.dataset_folder import list_folder
from zk0.data.dataset_info import DatasetInfo, camera_name, read_dataset_info, resolve_renames
from zk0.data.locate import locate_metadata
from zk0.errors import DatasetError, SimulatorError
from zk0.records import ACTION, STATE, DatasetReport, JointUnits, Record
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.settings.session import Session

_EVALUATION_SET = "evaluation set"


class DatasetUse(Record):
    """A dataset of a session, and what the session needs of it."""

    purpose: str
    """`client NAME` or `evaluation set`."""
    dataset: str
    location: str
    """URI of the place where it lies."""
    rename_map: dict[str, str]
    units: JointUnits | None
    episodes: int
    """Smallest number of episodes that suffices."""
    expected_episodes: int | None
    """Number of episodes that it must have; None: any."""
    may_repair: bool
    """Whether a repaired copy takes part; an older format is then no fault."""
    evaluated_episodes: int | None = None
    """Of an evaluation set: episodes that are evaluated on; None: all."""

    @property
    def is_evaluation_set(self) -> bool:
        """Whether it is an evaluation set, and not the dataset of clients."""
        return self.purpose == _EVALUATION_SET


def metadata_faults(
    session: Session, describe_simulated: Callable[[str, SimulatorSettings], DatasetReport]
) -> dict[str, list[str]]:
    """Return every fault that the metadata of the session's datasets shows, by dataset and purpose.

    Args:
        session: that names the datasets.
        describe_simulated: returns the facts of a `sim:` dataset, which is recorded only when the session runs.
    """
    faults, uses, reports = dict[str, list[str]](), dict[str, DatasetUse](), dict[str, DatasetReport]()
    for use in dataset_uses(session):
        where = f"{use.dataset} ({use.purpose})"
        uses[where] = use
        try:
            report, faults[where] = _facts(use, session, describe_simulated)
        except (DatasetError, SimulatorError) as e:
            faults[where] = [str(e).removeprefix(f"{use.dataset.removeprefix('hf:')}: ")]
            continue
        reports[where] = report = with_contract(report, session.contract, use.rename_map, use.units)
        faults[where] += _report_faults(use, report)
    for where, fault in _group_faults(session, uses, reports):
        faults[where].append(fault)
    try:
        if reports:
            check_same_rate(reports, session.contract)
    except DatasetError as e:
        faults["frames per second"] = [str(e)]
    return faults


def dataset_uses(session: Session) -> Iterator[DatasetUse]:
    """Yield each dataset once for each purpose; the clients of a shared dataset count as one."""
    shared, held_out, repairs = session.partition, session.data.holdout_episodes, session.data.repair == "repair"
    for client in session.local_clients()[: 1 if shared else None]:
        yield DatasetUse(
            purpose="partition" if shared else f"client {client.name}",
            dataset=client.dataset,
            location=client.location,
            rename_map=client.rename_map,
            units=client.units,
            episodes=held_out + client.partition_count,
            expected_episodes=client.expected_episodes,
            may_repair=repairs and client.allow_repair,
        )
    for one in session.evaluation.used_datasets():
        evaluated = one.first_episodes or one.last_episodes
        yield DatasetUse(
            purpose=_EVALUATION_SET,
            dataset=one.dataset,
            location=one.location,
            rename_map=one.rename_map,
            units=one.units,
            episodes=evaluated or 1,
            expected_episodes=one.expected_episodes,
            may_repair=repairs,
            evaluated_episodes=evaluated,
        )


def read_use_info(use: DatasetUse, cache: Path) -> DatasetInfo:
    """Return the meta/info.json of a dataset that is not simulated; of one on the Hub only this file is fetched.

    Raises:
        DatasetError: there is no such file, or it is malformed.
        HubUnavailable: the Hub cannot be reached now.
    """
    return read_dataset_info(list_folder(locate_metadata(use.location, cache)))


def _facts(
    use: DatasetUse, session: Session, describe_simulated: Callable[[str, SimulatorSettings], DatasetReport]
) -> tuple[DatasetReport, list[str]]:
    """Return what is known of a dataset, and the fault of its format."""
    if use.dataset.startswith("sim:"):
        return describe_simulated(use.dataset, session.simulator), []
    info = read_use_info(use, Path(session.cache_dir))
    if info.is_v3 or use.may_repair:
        return _report(use, info), []
    return _report(use, info), [
        f'format {info.codebase_version}, expected v3.0; set data.repair = "repair" (and let the client allow it) '
        f"to use a converted copy, or make one: zk0 data repair {use.dataset} FOLDER, and name it as local:FOLDER"
    ]


def _report(use: DatasetUse, info: DatasetInfo) -> DatasetReport:
    """The facts of a check that need no data; the units stay unknown, because only values tell them."""
    stored = {new: old for old, new in resolve_renames(info, use.rename_map).items()}
    state, action = (info.features.get(stored.get(key, key)) for key in (STATE, ACTION))
    return DatasetReport(
        dataset=use.dataset,
        root="",
        robot_type=info.robot_type,
        fps=info.fps,
        episodes=info.total_episodes,
        frames=info.total_frames,
        cameras=tuple(map(camera_name, info.cameras)),
        state_names=state.flat_names if state else (),
        action_names=action.flat_names if action else (),
    )


def _report_faults(use: DatasetUse, report: DatasetReport) -> Iterator[str]:
    if report.episodes is not None and report.episodes < use.episodes:
        yield f"{report.episodes} episodes, expected at least {use.episodes}"
    if use.expected_episodes not in (None, report.episodes) and not use.may_repair:
        yield wrong_episode_count(report.episodes, use.expected_episodes)
    for finding in report.errors:
        if finding.rule != "contract-units" or report.units:  # else the values decide about the units
            yield str(finding)


def _group_faults(
    session: Session, uses: Mapping[str, DatasetUse], reports: Mapping[str, DatasetReport]
) -> Iterator[tuple[str, str]]:
    """Yield the evaluation sets, each with the fault, that are in no client's group, whatever their values are."""
    clients = [where for where, use in uses.items() if not use.is_evaluation_set]
    if not session.contract.other_groups or not clients or not all(where in reports for where in clients):
        return
    groups = [reports[where] for where in clients]
    for where, report in reports.items():
        if where in clients or report.calibration is None or any(_may_share_group(report, one) for one in groups):
            continue
        expected = ", ".join(sorted({f"{one.calibration}-{one.units or 'any'}" for one in groups}))
        yield (
            where,
            f"joints {', '.join(report.state_names[:2])}, ... in {report.units or 'unknown units'}, and no client "
            f"whose statistics it could be normalized with; expected those of a client's group: {expected}",
        )


def _may_share_group(one: DatasetReport, other: DatasetReport) -> bool:
    """Whether two datasets are in one group as far as is known: units that only the values tell may be any."""
    return one.calibration == other.calibration and (one.units == other.units or None in (one.units, other.units))


def fault_list(title: str, faults: Mapping[str, list[str]]) -> str:
    """Return a text with one line for each fault, grouped by subject; a single fault is one line without the title.

    >>> fault_list("2 faults", {"set a": ["no camera", "no joint"], "set b": []})
    '2 faults:\\n  set a\\n    no camera\\n    no joint'
    >>> fault_list("1 fault", {"set a": ["no camera"]})
    'set a: no camera'
    """
    shown = {subject: found for subject, found in faults.items() if found}
    if sum(map(len, shown.values())) == 1:
        ((subject, (fault,)),) = shown.items()
        return f"{subject}: {fault}"
    lines = (line for subject, found in shown.items() for line in (f"  {subject}", *(f"    {f}" for f in found)))
    return "\n".join([f"{title}:", *lines])
