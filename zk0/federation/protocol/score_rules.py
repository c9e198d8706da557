"""What a client may claim of its held-out episodes: the parts of scores fit each other and its joining answer."""

from collections.abc import Iterator, Mapping
from math import isclose
from statistics import fmean

from zk0.records import EpisodeScore, Member, SetScore
from zk0.stats.intervals import Estimate
from zk0.stats.joining_comparison import JOINING_MODELS, JoiningReport, improvements_of, losses_of

_MAX_HORIZON = 10_000
_TOLERANCE = 1e-3
"""Relative, of a mean over episodes that is computed from their rounded means."""


def score_faults(score: SetScore, member: Member) -> list[str]:
    """Return what is wrong with a client's score; empty where it may be used.

    Args:
        score: of the client's held-out episodes.
        member: its joining answer.
    """
    return [*_episode_faults(score, member), *_size_faults(score, member), *_mean_faults(score)]


def report_faults(report: JoiningReport, member: Member, rounds: int) -> list[str]:
    """Return what is wrong with a client's joining report; empty where it may be shown.

    Args:
        report: of the client.
        member: its joining answer.
        rounds: of the session.
    """
    if sorted(report.models) != sorted(JOINING_MODELS):
        return [f"models {', '.join(report.models)}; expected {', '.join(JOINING_MODELS)}"]
    if report.rounds != rounds:
        return [f"{report.rounds} rounds, expected {rounds}"]
    scores = {name: score_faults(score, member) for name, score in report.models.items()}
    if faults := [f"{name}: {fault}" for name, found in scores.items() for fault in found]:
        return faults
    frames = {tuple((e.episode, e.frames, e.actions) for e in one.episodes) for one in report.models.values()}
    if len(frames) > 1:
        return ["models that were not evaluated on the same frames"]
    losses, improvements = losses_of(report.models), improvements_of(report.models)
    return [
        *_estimate_faults("loss of", report.losses, losses),
        *_estimate_faults("", report.improvements, improvements),
    ]


def _estimate_faults(what: str, stated: Mapping[str, Estimate], found: Mapping[str, Estimate]) -> Iterator[str]:
    """Yield where stated estimates are not those of the scores."""
    if sorted(stated) != sorted(found):
        yield f"{what} {', '.join(stated) or 'nothing'}; expected {', '.join(found)}".strip()
        return
    for name, estimate in found.items():
        for part in ("value", "se", "dof"):
            claimed, computed = getattr(stated[name], part), getattr(estimate, part)
            if (claimed is None) != (computed is None) or not _is_close(claimed or 0.0, computed or 0.0):
                yield f"{what} {name}: {part} {claimed}, that of its episodes is {computed}".strip()


def _episode_faults(score: SetScore, member: Member) -> Iterator[str]:
    found, expected = sorted(e.episode for e in score.episodes), sorted(member.split.held_out)
    if found != expected:
        yield f"scores of {len(found)} episodes, expected one of each of its {len(expected)} held-out episodes"
    if (frames := sum(e.frames for e in score.episodes)) != score.frames:
        yield f"{score.frames} frames, its episodes have {frames}"
    if empty := [e.episode for e in score.episodes if e.frames == 0]:
        yield f"no frame of episode {empty[0]}"


def _size_faults(score: SetScore, member: Member) -> Iterator[str]:
    joints = len(member.statistics.action.mean)
    if len(score.joint_error_degrees) != joints:
        yield f"errors of {len(score.joint_error_degrees)} joints, expected {joints}"
    if len(score.horizon_error_degrees) > _MAX_HORIZON:
        yield f"errors at {len(score.horizon_error_degrees)} steps, expected at most {_MAX_HORIZON}"


def _mean_faults(score: SetScore) -> Iterator[str]:
    for name in ("policy_loss", "action_error_degrees"):
        stated, mean = float(getattr(score, name)), _mean(score.episodes, name)
        if score.episodes and not _is_close(stated, mean):
            yield f"{name} {stated:.4g}, the mean of its episodes is {mean:.4g}"
    stated, joints = score.action_error_degrees, score.joint_error_degrees
    if joints and not _is_close(stated, mean := fmean(joints)):
        yield f"action_error_degrees {stated:.4g}, the mean of its joints is {mean:.4g}"


def _is_close(stated: float, mean: float) -> bool:
    return isclose(stated, mean, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _mean(episodes: tuple[EpisodeScore, ...], name: str) -> float:
    actions = sum(e.actions for e in episodes)
    return sum(float(getattr(e, name)) * e.actions for e in episodes) / max(actions, 1)
