"""The rule by which connected nodes start a session by themselves (`zk0bot watch`), and the state that it needs."""

from collections.abc import Collection
from pathlib import Path

from pydantic import Field, ValidationError

from zk0.errors import SettingsError
from zk0.records import Record
from zk0.storage.atomic import atomic_write_text


class LastSession(Record):
    """The last session that was started."""

    run: str
    """Id of its flow run."""
    at: float
    """Unix time."""
    known: tuple[str, ...]
    """Nodes that were connected when it started or while it ran; they do not count as new."""

    @classmethod
    def read(cls, path: Path) -> "LastSession | None":
        """Read the file; None before the first session.

        Raises:
            SettingsError: the file has another content.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (UnicodeDecodeError, ValidationError) as e:
            raise SettingsError(f"{path}: not a file of `zk0bot watch`; remove it to start anew") from e

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        atomic_write_text(path, self.model_dump_json(indent=2))

    def with_known(self, present: Collection[str]) -> "LastSession":
        """Return the same session with these nodes known, too."""
        return self.model_copy(update={"known": tuple(sorted({*self.known, *present}))})


class StartRule(Record):
    """How many connected nodes start a session, and how long a session without new nodes waits."""

    min_nodes: int = Field(ge=1)
    cooldown_seconds: float = Field(ge=0)
    """From the start of the last session; a new node ends it."""

    def of_session(self, least: int, named: Collection[str]) -> "StartRule":
        """Return the rule for a session that begins with at least so many nodes, and takes only named ones, if any.

        >>> rule = StartRule(min_nodes=2, cooldown_seconds=0)
        >>> [rule.of_session(least, "abc").min_nodes for least in (1, 3)], rule.of_session(1, "a").min_nodes
        ([2, 3], 1)
        >>> rule.of_session(4, ()).min_nodes
        4
        """
        needed = max(self.min_nodes, least)
        return self.model_copy(update={"min_nodes": min(needed, len(named) or needed)})


class StartDecision(Record):
    """Whether to start a session now, and the reason."""

    start: bool
    reason: str

    def without(self, refused: Collection[str]) -> "StartDecision":
        """Return the same decision, which says which connected nodes do not count.

        >>> StartDecision(start=False, reason="idle: 1 of 2 nodes connected (a)").without(["b"]).reason
        'idle: 1 of 2 nodes connected (a); not counted, because the last session refused them: b'
        """
        names = ", ".join(sorted(refused))
        return self.model_copy(
            update={"reason": f"{self.reason}; not counted, because the last session refused them: {names}"}
        )


def decide_start(
    present: Collection[str], last_session: LastSession | None, session_runs: bool, now: float, rule: StartRule
) -> StartDecision:
    """Decide whether the connected nodes start a session now.

    Args:
        present: names of the connected nodes.
        last_session: the session that was started last.
        session_runs: whether a session runs or is scheduled.
        now: Unix time.
        rule: to apply.

    >>> rule, last = StartRule(min_nodes=2, cooldown_seconds=3600), LastSession(run="x", at=0, known=("a", "b"))
    >>> decide_start(["a"], None, False, 0, rule).reason
    'idle: 1 of 2 nodes connected (a)'
    >>> decide_start(["a", "b"], None, False, 0, rule)
    StartDecision(start=True, reason='2 nodes connected (a, b)')
    >>> decide_start(["a", "b"], last, True, 9000, rule).reason
    'a session runs; connected: a, b'
    >>> decide_start(["a", "b"], last, False, 1800, rule).reason
    'idle: no new node (a, b); the cooldown ends in 30 min'
    >>> decide_start(["a", "c"], last, False, 1800, rule)
    StartDecision(start=True, reason='2 nodes connected (a, c), new: c')
    >>> decide_start(["a", "b"], last, False, 3600, rule)
    StartDecision(start=True, reason='2 nodes connected (a, b), the cooldown of 60 min is over')
    """
    names = ", ".join(sorted(present))
    if session_runs:
        return StartDecision(start=False, reason=f"a session runs; connected: {names or 'none'}")
    if len(present) < rule.min_nodes:
        listed = f" ({names})" if names else ""
        return StartDecision(start=False, reason=f"idle: {len(present)} of {rule.min_nodes} nodes connected{listed}")
    connected = f"{len(present)} nodes connected ({names})"
    if last_session is None:
        return StartDecision(start=True, reason=connected)
    if new := sorted(set(present) - set(last_session.known)):
        return StartDecision(start=True, reason=f"{connected}, new: {', '.join(new)}")
    if (left := last_session.at + rule.cooldown_seconds - now) > 0:
        return StartDecision(
            start=False, reason=f"idle: no new node ({names}); the cooldown ends in {left / 60:.0f} min"
        )
    return StartDecision(
        start=True, reason=f"{connected}, the cooldown of {rule.cooldown_seconds / 60:.0f} min is over"
    )
