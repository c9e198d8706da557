"""What a robot must be like for the policy of a session."""

from pathlib import Path

from zk0.data.calibrations import CALIBRATIONS
from zk0.data.episode_reader import EpisodeReader
from zk0.data.robot_reference import EpisodeSource, camera_references, start_moments
from zk0.data.statistics import pool_moments
from zk0.evaluation.session_setup import EvaluationSet, SessionSetup
from zk0.records import CalibrationName, DatasetReport, RobotReference
from zk0.settings.session import Session


def session_reference(session: Session, setup: SessionSetup) -> RobotReference:
    """Return the reference that is saved with a policy: joints and units are those of its default group.

    States and tasks are those of the clients' training episodes, which the server knows from their joining answers.
    First pictures and first states are those of the server's evaluation sets: no picture leaves a client.

    Raises:
        DatasetError: an evaluation set cannot be read.
    """
    members = [member for member in setup.members if _in_default_group(setup, member.report)]
    sets = [one for one in setup.sets if _in_default_group(setup, one.report)]
    contract, first = session.contract, members[0].report
    fps = contract.fps or first.fps
    assert fps, "a dataset without a frame rate is not admitted"
    return RobotReference(
        cameras=camera_references([_source(one) for one in sets or setup.sets], contract.cameras),
        joints=_joints_of(first.calibration) or contract.joints,
        units=setup.groups[0].units if setup.groups else contract.units,
        fps=fps,
        tasks=tuple(sorted({task for member in setup.members for task in member.report.tasks if task})),
        state=pool_moments([member.statistics for member in members]).state,
        start=start_moments([_source(one) for one in sets]),
    )


def _joints_of(calibration: CalibrationName | None) -> tuple[str, ...] | None:
    return next((known.joints for known in CALIBRATIONS if known.name == calibration), None)


def _in_default_group(setup: SessionSetup, report: DatasetReport) -> bool:
    default = setup.groups[0] if setup.groups else None
    return default is None or (report.calibration, report.units) == (default.calibration, default.units)


def _source(one: EvaluationSet) -> EpisodeSource:
    return EpisodeReader(Path(one.root), one.rename_map), one.split.held_out
