"""The commands that a person may want after a session: attempts in the simulator, a real arm, the Hub."""

import re
import shlex
from collections.abc import Sequence

from zk0.records import Member, Rollout, RoundRecord
from zk0.report.setup_facts import read_setup_facts
from zk0.rules.selection import select_round
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder

_PLAIN_TEXT = re.compile(r"[\w ,.'()-]{1,200}")
"""Task texts that stand in double quotes in any shell, and in Markdown, as they are."""


def next_commands(
    here: SessionFolder,
    session: Session,
    history: Sequence[RoundRecord],
    rollouts: Sequence[Rollout],
    program: str = "zk0",
) -> list[tuple[str, str]]:
    """Title and command line of each next step with the session's policy; empty while it has no checkpoint.

    Args:
        here: the session's folder.
        session: its settings.
        history: the finished rounds.
        rollouts: closed-loop attempts of all rounds, which decide which round's model is the policy.
        program: how a shell starts zk0.
    """
    if not history:
        return []
    checkpoint = here.checkpoint(select_round(session, history, rollouts).round)
    if not checkpoint.is_dir():
        return []
    push = f"{program} push {shlex.quote(str(here.path))} --repo-id USER/NAME"
    members = read_setup_facts(here).members if here.setup.is_file() else ()
    ways = policy_commands(session, members, shlex.quote(str(checkpoint)), program)
    return [*ways, ("Publish it, if it proved better", push)]


def policy_commands(
    session: Session, members: Sequence[Member], place: str, program: str = "zk0"
) -> list[tuple[str, str]]:
    """Title and command line of each way to run a saved policy.

    Args:
        session: that trained it; without closed-loop tasks there is no command for the simulator.
        members: the clients, whose first plain task text is that of the arm; without one, `zk0 arm run` lists all.
        place: of the policy, as a shell reads it.
        program: how a shell starts zk0.
    """
    cameras = " ".join(f"--camera {name}={number}" for number, name in enumerate(session.contract.cameras))
    arm = f"{program} arm run {place} --port /dev/ttyACM0 {cameras}"  # a person's own port and numbers
    if text := next((t for m in members for t in m.report.tasks if _PLAIN_TEXT.fullmatch(t)), None):
        arm += f' --task "{text}"'
    found = [("Run the policy on an SO-100 or SO-101 arm (docs/robot.md)", arm)]
    if session.rollout.tasks:
        tasks = " ".join(f"--task {task}" for task in session.rollout.tasks)
        command = f"{program} rollout {place} --out attempts {tasks} --seeds 9000-9019"
        found.insert(0, ("Let the policy make more attempts in the simulator", command))
    return found
