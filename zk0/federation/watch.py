"""When the nodes that are there start a session by themselves: a rule, and what it must remember."""

from collections.abc import Collection
from pathlib import Path

from pydantic import Field, ValidationError

from zk0.errors import SettingsError
from zk0.folder import write_whole
from zk0.records import Record


class Begun(Record):
    """The last session that was begun."""

    run: str
    """Id of its flow run."""
    at: float
    """Unix time."""
    known: tuple[str, ...]
    """Nodes that were there when it began or while it ran: none of them is new."""

    @classmethod
    def read(cls, path: Path) -> "Begun | None":
        """What was written down; None before the first session.

        Raises:
            SettingsError: the file holds something else.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (UnicodeDecodeError, ValidationError) as e:
            raise SettingsError(f"{path}: not what `zk0bot watch` has written; remove it to begin anew") from e

    def keep(self, path: Path) -> None:
        """Write it down, whole or not at all."""
        write_whole(path, self.model_dump_json(indent=2))

    def with_known(self, present: Collection[str]) -> "Begun":
        """The same, and these nodes are known too."""
        return self.model_copy(update={"known": tuple(sorted({*self.known, *present}))})


class Rule(Record):
    """How many nodes start a session, and how soon the next one may begin without a new node."""

    least: int = Field(ge=1)
    cooldown_seconds: float = Field(ge=0)


class Verdict(Record):
    """Whether to begin now, and why."""

    begin: bool
    why: str


def verdict(present: Collection[str], last: Begun | None, runs: bool, now: float, rule: Rule) -> Verdict:
    """Whether these nodes start a session now.

    Args:
        present: names of the nodes that are connected.
        last: the session that was begun last.
        runs: whether a session runs or is about to.
        now: Unix time.
        rule: as set.

    >>> rule, last = Rule(least=2, cooldown_seconds=3600), Begun(run="x", at=0, known=("a", "b"))
    >>> verdict(["a"], None, False, 0, rule).why
    'idle: 1 of 2 nodes present (a)'
    >>> verdict(["a", "b"], None, False, 0, rule)
    Verdict(begin=True, why='2 nodes present (a, b)')
    >>> verdict(["a", "b"], last, True, 9000, rule).why
    'a session runs; present: a, b'
    >>> verdict(["a", "b"], last, False, 1800, rule).why
    'idle: nobody new (a, b); the cooldown ends in 30 min'
    >>> verdict(["a", "c"], last, False, 1800, rule)
    Verdict(begin=True, why='2 nodes present (a, c), new: c')
    >>> verdict(["a", "b"], last, False, 3600, rule)
    Verdict(begin=True, why='2 nodes present (a, b), the cooldown of 60 min is over')
    """
    names = ", ".join(sorted(present))
    if runs:
        return Verdict(begin=False, why=f"a session runs; present: {names or 'nobody'}")
    if len(present) < rule.least:
        here = f" ({names})" if names else ""
        return Verdict(begin=False, why=f"idle: {len(present)} of {rule.least} nodes present{here}")
    there = f"{len(present)} nodes present ({names})"
    if last is None:
        return Verdict(begin=True, why=there)
    if new := sorted(set(present) - set(last.known)):
        return Verdict(begin=True, why=f"{there}, new: {', '.join(new)}")
    if (left := last.at + rule.cooldown_seconds - now) > 0:
        return Verdict(begin=False, why=f"idle: nobody new ({names}); the cooldown ends in {left / 60:.0f} min")
    return Verdict(begin=True, why=f"{there}, the cooldown of {rule.cooldown_seconds / 60:.0f} min is over")
