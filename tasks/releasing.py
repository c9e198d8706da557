"""The release of the session's policy: decided by the release rule, approved by a person if configured, pushed."""

from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field, SecretStr

from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.retry import DISK_RETRIES, is_transient
from tasks.secrets import load_secret
from zk0.errors import PublishError, TransientError
from zk0.records import RoundRecord
from zk0.rules.release import Release, decide_release
from zk0.rules.selection import select_round
from zk0.settings.session import Session
from zk0.storage.results import read_rollouts
from zk0.storage.session_folder import SessionFolder


class Approval(RunInput):
    """The form in the Prefect UI by which a person approves or declines a release."""

    approve: bool = Field(default=False, description="Push the checkpoint to the Hub.")
    note: str = Field(default="", description="Reason for the decision; it is recorded.")


def check_release_token(session: Session) -> None:
    """Check before the first round that a session with `publish.repo_id` has a token for the Hub.

    Raises:
        PublishError: there is no token.
    """
    if session.publish.repo_id is not None:
        from zk0.publish.hub import check_hub_access

        check_hub_access(_token())


@task(task_run_name="decide on a release", cache_policy=NO_CACHE, **DISK_RETRIES)
def decide_on_release(session: Session, folder: str, history: Sequence[RoundRecord]) -> Release:
    """Decide by the release rule whether the session's policy may be pushed; write the decision.

    An earlier decision stands, unless the Hub then refused the push.
    """
    here = SessionFolder(Path(folder))
    known = Release.read(here.release)
    if known is not None and known.outcome != "failed":
        return known
    selection = select_round(session, history, read_rollouts(here.rollouts_folder))
    selected = selection.reason if selection.round != history[-1].round else None
    found = decide_release(session.publish, history, selection.round, selected)
    _record(here, found)
    return found


def request_approval(session: Session, folder: str, release: Release) -> Release:
    """Ask a person to approve the release in the Prefect UI; return it with that person's decision.

    Suspends the flow run: its process ends, and the flow runs again from its start when the form is sent. A run without
    a deployment cannot be suspended; its release is refused.
    """
    here = SessionFolder(Path(folder))
    run = FlowRunContext.get()
    if run is None or run.flow_run is None or run.flow_run.deployment_id is None:
        reason = "publish.approval is set, but this run has no deployment, so nobody can approve it in the UI"
        found = release.with_outcome("refused", f"{reason}; approve with: zk0 push {here.path.name}")
    else:
        form = Approval.with_initial_data(description=_form_text(here, release))
        timeout = session.publish.approval_timeout_seconds
        answer = suspend_flow_run(wait_for_input=form, timeout=timeout, key="release")
        note = f" ({answer.note})" if answer.note else ""
        if answer.approve:
            found = release.with_outcome("allowed", f"{release.reason}; a person approved{note}")
        else:
            found = release.with_outcome("refused", f"a person declined{note}; {release.reason}")
    _record(here, found)
    return found


@task(task_run_name="push to {release.repo_id}", cache_policy=NO_CACHE, retry_condition_fn=is_transient)
def push_release(folder: str, record: RoundRecord, release: Release) -> Release:
    """Push the saved policy to the Hub and write the result, also where it fails.

    Raises:
        PublishError: the Hub refuses the push.
        TransientError: the Hub was not reachable; Prefect retries the task.
    """
    from zk0.publish.push_checkpoint import push_checkpoint

    here = SessionFolder(Path(folder))
    emit_progress(ProgressEvent(kind="stage", text=f"pushing to {release.repo_id}"))
    try:
        found = push_checkpoint(here, record, release, _token())
    except (PublishError, TransientError) as e:
        _record(here, release.with_outcome("failed", str(e)))
        raise
    _record(here, found)
    return found


def _token() -> SecretStr | None:
    from zk0.publish.hub import HUB_TOKEN

    return load_secret(HUB_TOKEN)


def _record(here: SessionFolder, release: Release) -> None:
    release.write(here.release)
    log_line(f"release: {release.summary()}")
    text = f"# {release.outcome}\n\n{release.summary()}" + (f"\n\n{release.url}" if release.url else "")
    create_markdown_artifact(markdown=text, key="release", description=release.repo_id)


def _form_text(here: SessionFolder, release: Release) -> str:
    visibility = "private" if release.private else "**public**"
    return (
        f"**Push round {release.round} of {here.name} to the {visibility} repository {release.repo_id}?**\n\n"
        f"The release rule allows it: {release.reason}.\n\nThe report is the artifact `session-report` of this run, "
        f"and `{here.report}`."
    )
