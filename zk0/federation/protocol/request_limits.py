"""Checks of a server's requests against the node's own limits (`NodeLimits`), before any work and before any answer."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zk0.errors import FederationError
from zk0.federation.protocol.statistics_digest import statistics_label
from zk0.records import Member, SetScore
from zk0.resources.disk_limit import folder_shares
from zk0.settings.node_limits import NodeLimits
from zk0.settings.plans import ClientPlan, EvaluationPlan, FeaturePlan, JoiningReportPlan, RoundPlan, SessionTerms
from zk0.settings.training_settings import LocalTrainingSettings
from zk0.simulator.recordings import RECORDINGS
from zk0.storage.atomic import atomic_write_text

LIMITS = "limits"
"""Key in a node's configuration: its limits as JSON; a client of a session on one machine has none."""
_STATE = "limits_state.json"
_REFUSALS = "refusals"
"""Key of the times of refused requests."""
_FIXED, _MAX_SESSIONS, _MAX_KEPT = "sessions", 200, 80
"""Key of what sessions have fixed, their number, and the characters of a value."""
_DAY = 86_400.0
_ROUNDING = 1e-9
"""Relative; a schedule ends at its minimum up to rounding."""
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_KINDS = {
    FeaturePlan: "compute features",
    RoundPlan: "train",
    EvaluationPlan: "evaluate",
    JoiningReportPlan: "report what joining brought",
}
"""What plans of each class ask a node to do."""


def node_limits(config: dict[str, Any]) -> NodeLimits | None:
    """Return the limits of a node; None for a client on the server's machine, whose operator is the server's."""
    return NodeLimits.model_validate_json(config[LIMITS]) if LIMITS in config else None


def check_terms(terms: SessionTerms, config: dict[str, Any]) -> None:
    """Raise unless a session's terms are within the node's limits.

    Raises:
        FederationError: names each limit that is broken.
    """
    if limits := node_limits(config):
        scratch = Path(config["scratch"])
        state = _read_state(scratch)
        faults = [*_terms_faults(terms, limits, state), *_changed_faults(terms, {}, limits, state)]
        _raise_for([*faults, *_disk_faults(config, limits)])
        state = _with_request("join", state, limits)
        _write_state(scratch, _with_fixed(terms, {}, state))


def check_plan(plan: ClientPlan, config: dict[str, Any], work: str = "") -> None:
    """Raise unless a plan and its terms are within the node's limits.

    Args:
        plan: of the request.
        config: of this node.
        work: what the request asks for, if not what plans of its class do; each kind is counted.

    Raises:
        FederationError: names each limit that is broken.
    """
    if limits := node_limits(config):
        scratch, asked = Path(config["scratch"]), _fixed_in_plan(plan)
        state = _read_state(scratch)
        faults = [*_terms_faults(plan.terms, limits, state), *_plan_faults(plan, limits)]
        faults += _changed_faults(plan.terms, asked, limits, state)
        if isinstance(plan, RoundPlan):
            faults += [*_round_faults(plan, limits)]
        if isinstance(plan, EvaluationPlan):
            faults += [*_evaluation_faults(plan, limits)]
        _raise_for([*faults, *_disk_faults(config, limits)])
        state = _with_request(work or _KINDS[type(plan)], state, limits)
        _write_state(scratch, _with_fixed(plan.terms, asked, state))


def check_receipts(config: dict[str, Any]) -> None:
    """Count a request to store receipts.

    Raises:
        FederationError: there were more in 24 hours than the node's limits allow.
    """
    if limits := node_limits(config):
        scratch = Path(config["scratch"])
        _write_state(scratch, _with_request("store receipts", _read_state(scratch), limits))


def check_member(member: Member, terms: SessionTerms, config: dict[str, Any]) -> None:
    """Raise unless enough data is behind the statistics of a joining answer; the first one fixes the held-out episodes.

    Raises:
        FederationError: names each limit that is broken.
    """
    if not (limits := node_limits(config)):
        return
    train, held_out = len(member.split.train), len(member.split.held_out)
    share = held_out / max(1, train + held_out)
    rules = {
        f"{held_out} of {train + held_out} episodes held out, at most {limits.max_holdout_share:g} of them": share
        > limits.max_holdout_share,
        f"statistics of {train} episodes, at least {limits.min_statistics_episodes}": train
        < limits.min_statistics_episodes,
        f"statistics of {member.train_frames} frames, at least {limits.min_statistics_frames}": member.train_frames
        < limits.min_statistics_frames,
    }
    _raise_for([text for text, broken in rules.items() if broken])
    scratch = Path(config["scratch"])
    state = _read_state(scratch)
    if "holdout" not in state:
        _write_state(scratch, state | {"holdout": terms.data.holdout_episodes})


def check_epochs(plan: RoundPlan | JoiningReportPlan, train_frames: int, config: dict[str, Any]) -> None:
    """Raise unless the passes over the client's frames that a plan asks for are as many frames as a round needs.

    Raises:
        FederationError: they are fewer.
    """
    limits, epochs = node_limits(config), plan.training.local_epochs
    if limits and epochs and (frames := epochs * train_frames) < limits.min_round_frames:
        _raise_for([f"{frames} frames in the epochs of a round, at least {limits.min_round_frames}"])


def check_refusals(config: dict[str, Any]) -> None:
    """Raise if the node has refused as many requests in the last 24 hours as it writes to its journal.

    Raises:
        FederationError: says when it answers again.
    """
    if not (limits := node_limits(config)):
        return
    recent = _recent(_read_state(Path(config["scratch"])).get(_REFUSALS, []))
    if len(recent) >= limits.max_refusals_per_day:
        again = datetime.fromtimestamp(recent[-limits.max_refusals_per_day] + _DAY, UTC)
        raise FederationError(
            f"{len(recent)} requests were refused in 24 hours, at most {limits.max_refusals_per_day} are allowed: this "
            f"node reads and journals no other one before {again:%Y-%m-%d %H:%M} UTC"
        )


def count_refusal(config: dict[str, Any]) -> None:
    """Count a request that a node has refused, for whatever reason."""
    if limits := node_limits(config):
        scratch = Path(config["scratch"])
        state = _read_state(scratch)
        recent = [*_recent(state.get(_REFUSALS, [])), time.time()]
        _write_state(scratch, state | {_REFUSALS: recent[-limits.max_refusals_per_day :]})


def round_clock(config: dict[str, Any]) -> Callable[[], None]:
    """Return a function that raises a FederationError once work that starts now takes longer than a round may."""
    limits, started = node_limits(config), time.monotonic()

    def check() -> None:
        if limits and time.monotonic() - started > limits.max_round_hours * 3600:
            _raise_for([f"a round of more than {limits.max_round_hours:g} hours, at most that"])

    return check


def check_score(score: SetScore, config: dict[str, Any]) -> None:
    """Raise unless enough frames are behind the score of each episode.

    Raises:
        FederationError: the score of an episode is that of a few frames.
    """
    limits = node_limits(config)
    if limits and (few := [e for e in score.episodes if e.frames < limits.min_score_frames]):
        found = f"a score of {few[0].frames} frame(s) of episode {few[0].episode}"
        _raise_for([f"{found}, at least {limits.min_score_frames}"])


def _disk_faults(config: dict[str, Any], limits: NodeLimits) -> Iterator[str]:
    """Yield a fault where the node's folder and the `sim:` recordings in its cache hold more than they may."""
    folders = Path(config["scratch"]), Path(config["cache"]) / RECORDINGS
    used = sum(share.bytes for folder in folders for share in folder_shares(folder)) / 1e9
    if used > limits.max_disk_gb:
        yield f"{used:.3g} GB in this node's folder and recordings, at most {limits.max_disk_gb:g}"


def _terms_faults(terms: SessionTerms, limits: NodeLimits, state: Mapping[str, Any]) -> list[str]:
    faults, simulator = [], terms.simulator
    if not _SESSION.fullmatch(terms.session):
        faults.append(f"a session named {terms.session[:40]!r}, letters, digits and _.- only")
    fixed = state.get("holdout", terms.data.holdout_episodes)
    if limits.fixed_holdout and terms.data.holdout_episodes != fixed:
        faults.append(
            f"data.holdout_episodes {terms.data.holdout_episodes}, {fixed} as in the first session of this node"
        )
    return [
        *faults,
        *_above("simulator.episodes", simulator.episodes, limits.max_simulated_episodes),
        *_above("simulator.image_size", simulator.image_size, limits.max_image_size),
    ]


def _fixed_in_plan(plan: ClientPlan) -> dict[str, str]:
    """Return what a plan has in common with all plans of its session that have it, besides its terms, as JSON."""
    asked = _fields("recipe", plan.recipe.model_dump(mode="json", exclude={"path"}))
    asked["statistics"] = statistics_label(plan.statistics)
    if isinstance(plan, EvaluationPlan):
        asked["evaluation.times"] = str(plan.times)
    if isinstance(plan, EvaluationPlan | FeaturePlan) and plan.every_frames is not None:
        asked["evaluation.every_frames"] = str(plan.every_frames)
    return asked


def _fixed_in_terms(terms: SessionTerms) -> dict[str, str]:
    found = {"seed": str(terms.seed)}
    for name in ("contract", "data", "simulator"):
        found |= _fields(name, getattr(terms, name).model_dump(mode="json"))
    return found


def _fields(section: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a section as JSON, long ones as digests."""
    texts = {f"{section}.{name}": json.dumps(value, sort_keys=True) for name, value in values.items()}
    return {name: text if len(text) <= _MAX_KEPT else _digest(text) for name, text in texts.items()}


def _digest(text: str) -> str:
    return f"a value with digest {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _changed_faults(
    terms: SessionTerms, asked: Mapping[str, str], limits: NodeLimits, state: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what a request asks for in another way than the session's first one that asked for it."""
    if not limits.fixed_session:
        return
    fixed = state.get(_FIXED, {}).get(terms.session, {})
    for name, value in {**_fixed_in_terms(terms), **asked}.items():
        if fixed.get(name, value) != value:
            yield f"{name} {value}, {fixed[name]} as in the first request of this session"


def _with_fixed(terms: SessionTerms, asked: Mapping[str, str], state: dict[str, Any]) -> dict[str, Any]:
    """Return the state with what the first request of a session fixes; the oldest sessions are forgotten."""
    sessions = state.get(_FIXED, {})
    known = sessions.get(terms.session, {})
    found = {**_fixed_in_terms(terms), **asked, **known}
    if found == known:
        return state
    others = [(name, fixed) for name, fixed in sessions.items() if name != terms.session]
    return state | {_FIXED: {**dict(others[-_MAX_SESSIONS + 1 :]), terms.session: found}}


def _plan_faults(plan: ClientPlan, limits: NodeLimits) -> Iterator[str]:
    training, recipe = plan.training, plan.recipe
    policy = recipe.path if recipe.revision is None else f"{recipe.path[:200]}@{recipe.revision}"
    if policy not in limits.policies:
        yield f"policy {policy[:300]!r}, one of {', '.join(limits.policies)}"
    if bad := [c for c in plan.recipe.cameras if not _SESSION.fullmatch(c)]:
        yield f"a camera named {bad[0][:40]!r}, letters, digits and _.- only"
    yield from _above("training.torch_threads", training.torch_threads, limits.max_threads)
    yield from _above("training.feature_cache_gb", training.feature_cache_gb, limits.max_feature_cache_gb)
    yield from _above("training.lora_rank", training.lora_rank, limits.max_lora_rank)
    yield from _above("training.lora_dropout", training.lora_dropout, limits.max_lora_dropout)
    scaling = training.lora_alpha / training.lora_rank
    yield from _above("training.lora_alpha / lora_rank", scaling, limits.max_lora_scaling)
    yield from _above("training.batch_size", training.batch_size, limits.max_batch_frames)
    yield from _above("training.local_steps", training.local_steps or 0, limits.max_steps)
    yield from _above("training.local_epochs", training.local_epochs or 0, limits.max_epochs)
    yield from _above("training.eps", training.eps, limits.max_eps)
    yield from _above("training.weight_decay", training.weight_decay, limits.max_weight_decay)
    yield from _above("training.grad_clip_norm", training.grad_clip_norm, limits.max_grad_clip_norm)
    if training.grad_clip_norm < limits.min_grad_clip_norm:
        yield f"training.grad_clip_norm {training.grad_clip_norm:g}, at least {limits.min_grad_clip_norm:g}"
    if any(not limits.min_beta <= beta <= limits.max_beta for beta in training.betas):
        yield f"training.betas {training.betas}, {limits.min_beta:g} to {limits.max_beta:g}"


def _round_faults(plan: RoundPlan, limits: NodeLimits) -> Iterator[str]:
    if limits.secure_only and plan.secure is None:
        yield "an update by itself, only a sum of several nodes' updates"
    neighbors = plan.secure.neighbors if plan.secure is not None else None
    if neighbors is not None and neighbors < limits.min_secure_neighbors:
        yield f"secure.neighbors {neighbors}, at least {limits.min_secure_neighbors}"
    yield from _above("lr", plan.lr, limits.max_lr)
    yield from _above("mu", plan.mu, limits.max_mu)
    yield from _above("scheduler.eta_min", plan.scheduler.eta_min, plan.lr * (1 + _ROUNDING))
    yield from _training_faults(plan.training, limits)


def _training_faults(training: LocalTrainingSettings, limits: NodeLimits) -> Iterator[str]:
    if training.batch_size < limits.min_batch_frames:
        yield f"training.batch_size {training.batch_size}, at least {limits.min_batch_frames}"
    if training.local_steps is not None:
        frames = training.local_steps * training.batch_size
        if frames < limits.min_round_frames:
            yield f"{frames} frames in the steps of a round, at least {limits.min_round_frames}"


def _evaluation_faults(plan: EvaluationPlan, limits: NodeLimits) -> Iterator[str]:
    if limits.secure_only:
        yield "a score of this node by itself, only a sum of several nodes' updates"
    yield from _above("evaluation.times", plan.times, limits.max_times)
    yield from _above("evaluation.batch_size", plan.batch_size, limits.max_batch_frames)
    if plan.video is not None:
        yield from _above("video.episodes", plan.video.episodes, limits.max_videos)
        yield from _above("video.camera_height", plan.video.camera_height, limits.max_video_height)
    if isinstance(plan, JoiningReportPlan):
        yield from _above("the largest lr", max(*plan.lrs, plan.scheduler.eta_min), limits.max_lr)
        yield from _above("rounds of the local-only baseline", len(plan.lrs), limits.max_baseline_rounds)
        yield from _training_faults(plan.training, limits)


def _above(name: str, found: float, largest: float) -> Iterator[str]:
    if found > largest:
        yield f"{name} {found:g}, at most {largest:g}"


def _raise_for(faults: list[str]) -> None:
    if faults:
        raise FederationError(
            f"the server asks for what this node's limits do not allow: {'; '.join(f'{f} is allowed' for f in faults)}"
        )


def _with_request(kind: str, state: dict[str, Any], limits: NodeLimits) -> dict[str, Any]:
    """Return the state with one more request of a kind; more than the limit in 24 hours are refused."""
    counted = state.get("requests", {})
    recent = _recent(counted.get(kind, []))
    if len(recent) >= limits.max_rounds_per_day:
        _raise_for([f"{len(recent) + 1} requests to {kind} in 24 hours, at most {limits.max_rounds_per_day}"])
    return state | {"requests": {**counted, kind: [*recent, time.time()]}}


def _recent(times: list[float]) -> list[float]:
    """Return the times that are less than a day ago."""
    return [at for at in times if at > time.time() - _DAY]


def _read_state(scratch: Path) -> dict[str, Any]:
    file = scratch / _STATE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _write_state(scratch: Path, state: dict[str, Any]) -> None:
    atomic_write_text(scratch / _STATE, json.dumps(state))
