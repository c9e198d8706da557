"""The folder that a flow run works in: that of its own session, or that of a session that it resumes."""

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from flows.packaged_files import find_session_file
from zk0.errors import SettingsError
from zk0.settings.loading import load_session
from zk0.settings.moves import absolute_moves, moved_path, with_moved_folders
from zk0.settings.session import Session

MAX_RESUMED_IN_A_ROW = 5
"""So many runs may each resume the one before; a session that crashes as often will crash again."""


def folder_of_flow_run(run: FlowRun, session: Session) -> Path:
    """Return the folder of the session that a flow run starts: the same whenever Prefect runs this run again.

    Its name has the time, the end of the run's id, which differs between runs that are created in the same second, and
    the name of the session.
    """
    assert run.created is not None, "a run of a server has been created"
    name = f"{run.created.astimezone():%Y-%m-%d_%H-%M-%S}-{run.id.hex[-6:]}_{session.name}"
    return Path(session.output_dir) / name


def folder_to_resume(resume: str, moved: Mapping[str, str]) -> Path:
    """Return the folder of the session to resume.

    Args:
        resume: the folder, or the id of the flow run that worked in it.
        moved: folders that were moved since the session began: old place -> new place.

    Raises:
        SettingsError: too many runs in a row have resumed this session.
    """
    with get_client(sync_client=True) as client:
        for _ in range(MAX_RESUMED_IN_A_ROW):
            if (run_id := _as_id(resume)) is None:
                return Path(resume).resolve()
            run = client.read_flow_run(run_id)
            if not run.parameters.get("resume"):
                return _started_folder(run, moved)
            resume = str(run.parameters["resume"])
    raise SettingsError(
        f"{MAX_RESUMED_IN_A_ROW} runs in a row resumed this session and crashed; find out why, "
        "then give its folder as `resume`"
    )


def _started_folder(run: FlowRun, moved: Mapping[str, str]) -> Path:
    config = run.parameters.get("config", "deployments/sessions/demo.toml")
    session = load_session(find_session_file(Path(config)), run.parameters.get("overrides"), base=Path.cwd())
    started = absolute_moves(run.parameters.get("moved") or {}, Path.cwd())
    folder = folder_of_flow_run(run, with_moved_folders(session, started, config))
    for before, now in moved.items():
        folder = Path(moved_path(str(folder), before, now) or folder)
    return folder


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
