"""Whether the last checkpoint leaves the house: decided, agreed to by a person if asked for, pushed, written down."""

from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field, SecretStr

from tasks.events import Event, say, tell
from tasks.retry import is_transient
from tasks.secrets import secret
from zk0.errors import PublishError, TransientError
from zk0.folder import SessionFolder
from zk0.records import RoundRecord
from zk0.release import Release, decide_release
from zk0.session import Session


class Approval(RunInput):
    """What the form in the UI asks."""

    approve: bool = Field(default=False, description="push it")
    note: str = Field(default="", description="why, or why not; it is recorded")


def check_ready(session: Session) -> None:
    """Raises PublishError before anything is trained where a release is asked for and no token is there."""
    if session.publish.repo_id is not None:
        from zk0.publish.hub import check_ready as check

        check(_token())


@task(task_run_name="decide on a release", cache_policy=NO_CACHE)
def decide(session: Session, folder: str, history: Sequence[RoundRecord]) -> Release:
    """May the last checkpoint be pushed; it is decided once, and again after the Hub did not take it."""
    here = SessionFolder(Path(folder))
    known = Release.read(here.release)
    if known is not None and known.outcome != "failed":
        return known
    found = decide_release(session.publish, history, history[-1].round)
    _show(here, found)
    return found


def ask(session: Session, folder: str, release: Release) -> Release:
    """The same release once a person has agreed to it, or refused by that person.

    Suspends the flow run: its process ends, and the flow runs again from its start when the form is sent.
    """
    here = SessionFolder(Path(folder))
    run = FlowRunContext.get()
    if run is None or run.flow_run is None or run.flow_run.deployment_id is None:
        alone = "publish.approval is set and this run has no deployment, where one could be asked"
        found = release.now("refused", f"{alone}; agree with: zk0 push {here.path.name}")
    else:
        form = Approval.with_initial_data(description=_evidence(here, release))
        timeout = session.publish.approval_timeout_seconds
        answer = suspend_flow_run(wait_for_input=form, timeout=timeout, key="release")
        note = f" ({answer.note})" if answer.note else ""
        agreed = release.now("allowed", f"{release.reason}; a person agreed{note}")
        found = agreed if answer.approve else release.now("refused", f"a person declined{note}; {release.reason}")
    _show(here, found)
    return found


@task(task_run_name="push to {release.repo_id}", cache_policy=NO_CACHE, retry_condition_fn=is_transient)
def push(folder: str, record: RoundRecord, release: Release) -> Release:
    """The saved policy on the Hub; whatever comes of it is written down."""
    from zk0.publish.checkpoint import push_checkpoint

    here = SessionFolder(Path(folder))
    tell(Event(kind="stage", text=f"pushing to {release.repo_id}"))
    try:
        found = push_checkpoint(here, record, release, _token())
    except (PublishError, TransientError) as e:
        _show(here, release.now("failed", str(e)))
        raise
    _show(here, found)
    return found


def _token() -> SecretStr | None:
    from zk0.publish.hub import TOKEN

    return secret(TOKEN)


def _show(here: SessionFolder, release: Release) -> None:
    release.keep(here.release)
    say(f"release: {release.told()}")
    text = f"# {release.outcome}\n\n{release.told()}" + (f"\n\n{release.url}" if release.url else "")
    create_markdown_artifact(markdown=text, key="release", description=release.repo_id)


def _evidence(here: SessionFolder, release: Release) -> str:
    visible = "private" if release.private else "**public**"
    return (
        f"**Push round {release.round} of {here.name} to the {visible} repository {release.repo_id}?**\n\n"
        f"The rule allows it: {release.reason}.\n\nThe report is the artifact `session-report` of this run, "
        f"and `{here.report}`."
    )
