"""A session run again from its folder: the same weights in every round, or where they part."""

from collections.abc import Sequence

from zk0.errors import CheckpointError
from zk0.records import RoundRecord


def check_reproduced(original: Sequence[RoundRecord], again: Sequence[RoundRecord], where: str) -> str:
    """A sentence that says so; `where` names the original.

    Raises:
        CheckpointError: a round has other weights than it had, or is missing; says what else differs in that round.
    """
    for before, after in zip(original, again, strict=False):
        if before.checkpoint.digest != after.checkpoint.digest:
            raise CheckpointError(
                f"round {before.round} has weights {after.checkpoint.digest[:12]}, in {where} it had "
                f"{before.checkpoint.digest[:12]}{_other(before, after)}"
            )
    if len(again) < len(original):
        raise CheckpointError(f"{len(again)} rounds are finished, {where} has {len(original)}")
    return f"reproduced: all {len(original)} digests, rounds 0 to {original[-1].round}, are those of {where}"


def _other(before: RoundRecord, after: RoundRecord) -> str:
    """What may be why: other clients, other updates; else the arithmetic of another machine or library."""
    if not before.updates:
        return "; the session starts from another policy, or from statistics of other recordings"
    names = [sorted(update.client for update in one.updates) for one in (before, after)]
    if names[0] != names[1]:
        return f"; then {', '.join(names[0])} took part, now {', '.join(names[1])}"
    digests = [{update.client: update.digest for update in one.updates} for one in (before, after)]
    if parted := sorted(name for name in digests[0] if digests[0][name] != digests[1][name]):
        same = "none is equal" if len(parted) == len(digests[0]) else f"{len(digests[0]) - len(parted)} are equal"
        return (
            f"; updates of {', '.join(parted)} differ, {same}: other recordings, another version of a library, another "
            "kind of processor, or noise that is drawn anew"
        )
    return "; every update is equal, so the server's part differs: noise that is drawn anew, or another strategy"
