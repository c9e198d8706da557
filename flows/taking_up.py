"""The folder in which a session is taken up: one that is named, or that of an earlier flow run."""

from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from zk0.errors import SettingsError
from zk0.session import Session, load_session

IN_A_ROW = 5
"""Runs that take up one another; whatever crashes as often will crash again."""


def begun_in(run: FlowRun, session: Session) -> Path:
    """Where a flow run that began a session keeps it: the same folder whenever Prefect runs this run again."""
    assert run.created is not None, "a run of a server has been created"
    return Path(session.output_dir) / f"{run.created.astimezone():%Y-%m-%d_%H-%M-%S}_{session.name}"


def named(resume: str) -> Path:
    """The folder that is named, or the one in which the flow run of this id worked.

    Raises:
        SettingsError: too many runs have taken up one another.
    """
    with get_client(sync_client=True) as client:
        for _ in range(IN_A_ROW):
            if (run_id := _as_id(resume)) is None:
                return Path(resume).resolve()
            run = client.read_flow_run(run_id)
            if not run.parameters.get("resume"):
                return _begun(run)
            resume = str(run.parameters["resume"])
    raise SettingsError(
        f"{IN_A_ROW} runs in a row took up this session and crashed; see why, then name its folder as `resume`"
    )


def _begun(run: FlowRun) -> Path:
    config = run.parameters.get("config", "deployments/sessions/demo.toml")
    return begun_in(run, load_session(Path(config), run.parameters.get("overrides")).at(Path.cwd()))


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
