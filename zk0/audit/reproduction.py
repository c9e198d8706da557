"""Compare the weights of a session that was run again from its folder with those of the original session."""

from collections.abc import Sequence

from zk0.errors import CheckpointError
from zk0.records import RoundRecord


def check_reproduced(original: Sequence[RoundRecord], again: Sequence[RoundRecord], where: str) -> str:
    """Check that every round has the same weights again, and return a sentence that confirms it.

    Args:
        original: the ledger of the original session.
        again: the ledger of the second run.
        where: folder of the original session, for the messages.

    Raises:
        CheckpointError: a round has other weights, or is missing; names what else differs in that round.
    """
    for before, after in zip(original, again, strict=False):
        if before.checkpoint.digest != after.checkpoint.digest:
            raise CheckpointError(
                f"round {before.round} has weights {after.checkpoint.digest[:12]}, in {where} it had "
                f"{before.checkpoint.digest[:12]}{_likely_cause(before, after)}"
            )
    if len(again) < len(original):
        raise CheckpointError(f"{len(again)} rounds are finished, {where} has {len(original)}")
    return f"reproduced: all {len(original)} digests, rounds 0 to {original[-1].round}, equal those of {where}"


def _likely_cause(before: RoundRecord, after: RoundRecord) -> str:
    """What may explain other weights: other clients, other updates, or the server's part."""
    if not before.updates:
        return "; the session starts from another policy, or from statistics of other datasets"
    names = [sorted(update.client for update in record.updates) for record in (before, after)]
    if names[0] != names[1]:
        return f"; {', '.join(names[0])} took part then, {', '.join(names[1])} now"
    digests = [{update.client: update.digest for update in record.updates} for record in (before, after)]
    if different := sorted(name for name in digests[0] if digests[0][name] != digests[1][name]):
        equal = len(digests[0]) - len(different)
        return (
            f"; updates of {', '.join(different)} differ, {equal or 'none'} are equal: other datasets, another version "
            "of a library, another kind of processor, or new random noise"
        )
    return "; every update is equal, so the server's part differs: new random noise, or another strategy"
