"""The datasets of a session fit together: one frame rate, and no episode in two of them."""

from collections.abc import Collection, Mapping, Sequence

from zk0.data.check import check_same_rate
from zk0.data.split import Overlap, assert_disjoint, assert_not_trained_on, find_leaks, find_overlap
from zk0.errors import DatasetError
from zk0.evaluation.session_setup import EvaluationSet
from zk0.records import Member
from zk0.settings.session import Session


def check_datasets_agree(session: Session, members: Sequence[Member], sets: Sequence[EvaluationSet]) -> None:
    """Check the clients' training episodes and the evaluation sets against each other.

    Raises:
        DatasetError: frame rates differ, or an episode is in two places.
    """
    reports = {s.dataset: s.report for s in sets} | {m.client: m.report for m in members}
    check_same_rate(reports, session.contract)
    assert_disjoint({**_set_digests(sets), **{_place(m): m.train_digests for m in members}})
    held_out = {f"held-out episodes of {m.client} ({m.dataset})": m.held_out_digests for m in members}
    assert_not_trained_on({_place(m): m.train_digests for m in members}, held_out)


def agreeing_members(
    session: Session,
    members: Sequence[Member],
    sets: Sequence[EvaluationSet],
    known: Collection[str] = (),
    enrolled: Sequence[str] = (),
) -> tuple[tuple[Member, ...], dict[str, str]]:
    """Return the members whose datasets agree with the evaluation sets and with each other, and why others do not.

    Every rate is compared with the contract's, or else with that of the server's own evaluation sets. Where members
    share episodes, the one with the most conflicts is left out first, among equals the one that was
    enrolled last. Where that is not known, all equals are left out: a name, which a node may choose, decides nothing.

    Args:
        session: the settings.
        members: that have joined.
        sets: the server's evaluation sets, which agree with each other.
        known: clients that took part before, which keep their place against others.
        enrolled: names of nodes in the order of their enrollment, the first one first; others count as enrolled later.

    Raises:
        DatasetError: the evaluation sets do not agree with each other.
    """
    check_datasets_agree(session, (), sets)
    reasons: dict[str, str] = {}
    for member in members:
        try:
            check_datasets_agree(session, [member], sets)
        except DatasetError as e:
            reasons[member.client] = str(e)
    agreeing = [member for member in members if member.client not in reasons]
    order = {name: place for place, name in enumerate(enrolled)}
    while overlaps := _shared_episodes(agreeing):
        conflicts = _conflicts(overlaps)
        ranks = {name: (name not in known, len(conflicts[name]), order.get(name, len(order))) for name in conflicts}
        worst = {name for name, rank in ranks.items() if rank == max(ranks.values())}
        for name in sorted(worst):
            reasons[name] = "; ".join(map(str, conflicts[name])) + "; expected every episode in one place only"
        agreeing = [member for member in agreeing if member.client not in worst]
    return tuple(agreeing), reasons


def _shared_episodes(members: Sequence[Member]) -> tuple[Overlap, ...]:
    """Return where two members train on one episode, or one trains on what another holds out."""
    trained = {m.client: m.train_digests for m in members}
    return (*find_overlap(trained), *find_leaks(trained, {m.client: m.held_out_digests for m in members}))


def _conflicts(overlaps: Sequence[Overlap]) -> Mapping[str, list[Overlap]]:
    found: dict[str, list[Overlap]] = {}
    for overlap in overlaps:
        for name in (overlap.first, overlap.second):
            found.setdefault(name, []).append(overlap)
    return found


def _set_digests(sets: Sequence[EvaluationSet]) -> dict[str, Sequence[str]]:
    return {f"evaluation set {s.dataset}": s.digests for s in sets}


def _place(member: Member) -> str:
    return f"training data of {member.client} ({member.dataset})"
