"""Collect the updates of one round, with a federation for synchronous or for buffered rounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zk0.federation.protocol.buffered_federation import BufferedFederation, BufferedRequest, RoundStart
from zk0.federation.protocol.collect import Federation
from zk0.federation.protocol.replies import CollectedUpdates
from zk0.records import BufferedRound
from zk0.settings.buffer_settings import BufferSettings
from zk0.settings.plans import RoundPlan

FEDERATIONS: dict[str, type[Federation]] = {"synchronous": Federation, "buffered": BufferedFederation}
"""By `federation.mode`."""


def collect_updates(
    federation: Federation,
    plans: Sequence[RoundPlan],
    weights: Path,
    spool: Path,
    listener: Any = None,
    last: BufferedRound | None = None,
) -> tuple[CollectedUpdates, BufferedRound | None]:
    """Return the answers to the plans, and how a buffered round came about, whose buffer has a place for each of them.

    Args:
        federation: of either kind.
        plans: of the round.
        weights: that the clients begin from.
        spool: folder of the updates.
        listener: called after each answer.
        last: how the buffered round before came about.
    """
    if not isinstance(federation, BufferedFederation):
        return federation.train(plans, weights, spool, listener), None
    starts = {plan.client: RoundStart(plan, weights, weights) for plan in plans}
    settings = BufferSettings(size=len(plans))
    request = BufferedRequest(
        plans[0].round, spool, settings, tuple(starts), last, lambda client, began: starts[client]
    )
    found = federation.train_buffered(request, listener)
    return found.updates, found.clients.record(found.waited_seconds)
