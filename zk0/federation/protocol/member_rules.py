"""What a client may claim when it joins: counts, moments and digests that fit each other and the session's contract."""

import re
from collections.abc import Callable, Iterator, Sequence
from math import radians

from zk0.data.units import MAX_DEGREES
from zk0.records import Member, Moments
from zk0.settings.dataset_settings import ContractSettings

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LARGEST = {"degrees": MAX_DEGREES, "radians": radians(MAX_DEGREES), "normalized": 200.0}
"""Of a state or action, by units: above what an arm reaches, and not far above, because pooled statistics follow."""
_MOST_EPISODES, _MOST_DIMENSIONS, _MOST_NAMES = 200_000, 64, 1000
_MOST_TEXT = 2_000_000
"""Of a dataset check, in characters; reports and the UI show it."""
_SLACK = 1e-6
"""Relative; moments are rounded."""

MemberRule = Callable[[Member, ContractSettings | None], Iterator[str]]


def member_faults(member: Member, contract: ContractSettings | None) -> list[str]:
    """Return what is wrong with a client's answer to the session's terms; empty where it may take part.

    Args:
        member: the answer.
        contract: of the session; None: only what must fit within the answer is checked.
    """
    return [fault for rule in _RULES for fault in rule(member, contract)]


def _report_has_no_error(member: Member, contract: ContractSettings | None) -> Iterator[str]:
    if errors := member.report.errors:
        yield f"its own dataset check found {len(errors)} error(s), first {errors[0]}"


def _lists_are_short(member: Member, contract: ContractSettings | None) -> Iterator[str]:
    report = member.report
    for name in ("findings", "cameras", "state_names", "action_names", "tasks", "repairs"):
        if (count := len(getattr(report, name))) > _MOST_NAMES:
            yield f"{count} {name}, expected at most {_MOST_NAMES}"
    if (size := len(report.model_dump_json())) > _MOST_TEXT:
        yield f"a dataset check of {size} characters, expected at most {_MOST_TEXT}"


def _episodes_are_listed_once(member: Member, contract: ContractSettings | None) -> Iterator[str]:
    episodes = (*member.split.train, *member.split.held_out)
    if not member.split.train or len(episodes) > _MOST_EPISODES:
        yield f"{len(member.split.train)} training episodes of {len(episodes)}, expected 1 to {_MOST_EPISODES}"
    if len(set(episodes)) < len(episodes):
        yield f"{len(episodes) - len(set(episodes))} episode(s) listed twice, expected each once"


def _digests_are_complete(member: Member, contract: ContractSettings | None) -> Iterator[str]:
    pairs = (
        ("training", member.train_digests, member.split.train),
        ("held-out", member.held_out_digests, member.split.held_out),
    )
    for what, digests, episodes in pairs:
        if len(digests) != len(episodes):
            yield f"{len(digests)} digests of {len(episodes)} {what} episodes, expected one for each"
        if bad := next((d for d in digests if not _DIGEST.fullmatch(d)), None):
            yield f"{bad[:20]!r} as digest of a {what} episode, expected 64 hexadecimal digits"
    digests = (*member.train_digests, *member.held_out_digests)
    if len(set(digests)) < len(digests):
        yield f"{len(digests) - len(set(digests))} episode(s) with the digest of another one, expected each once"
    if (sketches := len(member.path_sketches)) not in (0, len(digests)):
        yield f"{sketches} path sketches of {len(digests)} episodes, expected one for each, or none"


def _counts_agree(member: Member, contract: ContractSettings | None) -> Iterator[str]:
    for what, moments in _features(member):
        if moments.count != member.train_frames:
            yield f"{what} statistics of {moments.count} frames, expected those of its {member.train_frames}"
    frames, episodes = member.report.frames, member.report.episodes
    if frames is not None and member.train_frames > frames:
        yield f"{member.train_frames} training frames in a dataset of {frames}"
    if episodes is not None and len(member.split.train) > episodes:
        yield f"{len(member.split.train)} training episodes in a dataset of {episodes}"


def _moments_are_possible(member: Member, contract: ContractSettings | None) -> Iterator[str]:
    for what, moments in _features(member):
        widths = {len(values) for values in (moments.mean, moments.std, moments.min, moments.max)}
        expected = {len(contract.joints)} if contract else set(range(1, _MOST_DIMENSIONS + 1))
        if len(widths) > 1 or not widths <= expected:
            wanted = f"{len(contract.joints)}" if contract else f"1 to {_MOST_DIMENSIONS}"
            yield f"{what} moments of {sorted(widths)} dimensions, expected {wanted} everywhere"
            continue
        impossible = [d for d in range(len(moments.mean)) if not _is_possible(moments, d)]
        if impossible:
            yield f"{what}: no data has the moments of dimension {impossible[0]}; {_described(moments, impossible[0])}"


def _values_are_plausible(member: Member, contract: ContractSettings | None) -> Iterator[str]:
    if contract is None:
        return
    units = member.report.units if contract.other_groups else contract.units
    if units not in _LARGEST:
        yield f"units {units}, expected one of {', '.join(_LARGEST)}"
        return
    largest = _LARGEST[units]
    for what, moments in _features(member):
        if (found := max((abs(v) for v in (*moments.min, *moments.max)), default=0.0)) > largest:
            yield f"{what} values up to {found:.3g}, expected at most {largest:g} {units}"


_RULES: Sequence[MemberRule] = (
    _report_has_no_error,
    _lists_are_short,
    _episodes_are_listed_once,
    _digests_are_complete,
    _counts_agree,
    _moments_are_possible,
    _values_are_plausible,
)


def _features(member: Member) -> tuple[tuple[str, Moments], ...]:
    return ("state", member.statistics.state), ("action", member.statistics.action)


def _is_possible(moments: Moments, dimension: int) -> bool:
    """Return whether min <= mean <= max and 0 <= std <= (max - min) / 2 (Popoviciu's inequality)."""
    mean, std, low, high = (values[dimension] for values in (moments.mean, moments.std, moments.min, moments.max))
    slack = _SLACK * max(abs(low), abs(high), 1e-9)
    return low - slack <= mean <= high + slack and low <= high and 0 <= std <= (high - low) / 2 + slack


def _described(moments: Moments, dimension: int) -> str:
    mean, std, low, high = (values[dimension] for values in (moments.mean, moments.std, moments.min, moments.max))
    return f"found mean {mean:.3g}, std {std:.3g}, min {low:.3g}, max {high:.3g}"
