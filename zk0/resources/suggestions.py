"""Settings with which a session fits a machine, and what each of them saves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any, Literal

from zk0.errors import SettingsError
from zk0.policy.policy_shapes import PolicyShapes, PolicySizes, read_policy_sizes
from zk0.records import Record
from zk0.resources.dataset_sizes import DatasetSize
from zk0.resources.host_capacity import HostCapacity
from zk0.resources.run_time import Speed
from zk0.resources.session_estimate import SessionEstimate, estimate_session
from zk0.settings.loading import override_session
from zk0.settings.session import Session

Resource = Literal["memory", "disk", "folder", "time", "turn"]
"""`folder`: the session's folder, which `disk_limit_gb` limits; `turn`: the longest training of a client in one round,
which `federation.round_timeout_seconds` limits."""

MEMORY_SHARE = 0.9
"""Of a machine's memory that a session may take."""
DAY_SECONDS = 86_400.0
"""A session that takes longer is reported with suggestions."""
_USEFUL = 0.95
"""A change is suggested if at most this share of the need remains."""
_FRAMES_AT_ONCE = 8


class SessionNeeds(Record):
    """Everything that an estimate is computed from."""

    session: Session
    sizes: tuple[DatasetSize, ...]
    policy: PolicyShapes | PolicySizes
    machine: HostCapacity
    speed: Speed | None
    """None: not known, or of a policy other than SmolVLA."""

    def estimate(self) -> SessionEstimate:
        """Return what the session needs of the machine."""
        return estimate_session(self.session, self.sizes, self.policy, self.machine, self.speed)


class Suggestion(Record):
    """A change, and what is needed with it and with those before it."""

    change: str
    needed: float
    """Bytes or seconds."""
    fits: bool


class Shortage(Record):
    """A resource of which a session needs more than there is, and what helps."""

    resource: Resource
    needed: float
    available: float
    suggestions: tuple[Suggestion, ...]
    """One after the other, up to the first with which it fits."""


def find_shortages(needs: SessionNeeds) -> tuple[Shortage, ...]:
    """Return what a session needs more of than there is, each with changes that help."""
    found = _needed_and_available(needs)
    return tuple(
        Shortage(resource=r, needed=needed, available=there, suggestions=tuple(_suggestions(needs, r)))
        for r, (needed, there) in found.items()
        if needed > there
    )


def _needed_and_available(needs: SessionNeeds) -> dict[Resource, tuple[float, float]]:
    estimate, machine = needs.estimate(), needs.machine
    session, cache = estimate.disk.peak_bytes("session"), estimate.disk.peak_bytes("cache")
    free = machine.free_session_bytes
    if not machine.same_disk and cache - machine.free_cache_bytes > session - free:
        session, cache, free = cache, 0, machine.free_cache_bytes
    found: dict[Resource, tuple[float, float]] = {
        "disk": (session + (cache if machine.same_disk else 0), free),
    }
    if estimate.memory is not None:
        found = {"memory": (estimate.memory.total_bytes, MEMORY_SHARE * machine.memory_bytes), **found}
    if needs.session.disk_limit_gb is not None:
        found["folder"] = (estimate.disk.peak_bytes("session"), needs.session.disk_limit_gb * 1e9)
    if estimate.time is not None:
        found["time"] = (estimate.time.total, DAY_SECONDS)
        found["turn"] = (estimate.time.longest_turn, needs.session.federation.round_timeout_seconds)
    return found


def _suggestions(needs: SessionNeeds, resource: Resource) -> Iterator[Suggestion]:
    """Apply the changes that help one after the other, until it fits."""
    needed = _needed_and_available(needs)[resource][0]
    for change in _CHANGES[resource]:
        if (made := change(needs)) is None:
            continue
        text, changed = made
        now, available = _needed_and_available(changed)[resource]
        if now <= max(_USEFUL * needed, available):
            needs, needed = changed, now
            yield Suggestion(change=text, needed=needed, fits=needed <= available)
            if needed <= available:
                return


Change = Callable[[SessionNeeds], tuple[str, SessionNeeds] | None]
"""Returns a text and the changed needs; None where the change does not apply."""


def _set(needs: SessionNeeds, overrides: Mapping[str, Any]) -> tuple[str, SessionNeeds] | None:
    try:
        session = override_session(needs.session, overrides, "suggestion")
    except SettingsError:  # it contradicts another setting, so it is no suggestion
        return None
    text = " ".join(f"--set {name}={_shown(value)}" for name, value in overrides.items())
    return text, needs.model_copy(update={"session": session})


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _setting(**overrides: Any) -> Change:
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return lambda needs: _set(needs, named)


def _accumulate(needs: SessionNeeds) -> tuple[str, SessionNeeds] | None:
    pieces, now = ceil(needs.session.training.batch_size / _FRAMES_AT_ONCE), needs.session.training.accumulate_steps
    if now == 0 or pieces <= now:
        return None
    return _set(needs, {"training.accumulate_steps": pieces})


def _one_worker(needs: SessionNeeds) -> tuple[str, SessionNeeds] | None:
    return _set(needs, {"federation.workers": 1}) if needs.session.federation.workers > 1 else None


def _lora(needs: SessionNeeds) -> tuple[str, SessionNeeds] | None:
    if (found := _set(needs, {"training.scope": "lora"})) is None or needs.session.training.scope in ("expert", "lora"):
        return found
    text, changed = found  # the vision-language model is frozen then
    return text, changed.model_copy(update={"policy": read_policy_sizes(needs.session.policy)})


def _fewer_steps(needs: SessionNeeds) -> tuple[str, SessionNeeds] | None:
    training = needs.session.training
    if training.local_steps is not None and training.local_steps <= 100:
        return _set(needs, {"training.local_steps": ceil(training.local_steps / 4)})
    return _set(needs, {"training.local_steps": 100})


def _smaller_cache(needs: SessionNeeds) -> tuple[str, SessionNeeds] | None:
    return _set(needs, {"training.features": "embeddings"}) if needs.session.training.features == "kv" else None


def _fewer_frames(needs: SessionNeeds) -> tuple[str, SessionNeeds]:
    sizes = tuple(
        size.model_copy(
            update={
                "frames": ceil(size.frames / 4),
                "episodes": ceil(size.episodes / 4),
                "held_out_episodes": min(size.held_out_episodes, ceil(size.episodes / 4)),
                "stored_bytes": ceil(size.stored_bytes / 4),
            }
        )
        for size in needs.sizes
    )
    most = max((size.frames for size in sizes), default=0)
    return f"datasets with a quarter of the episodes (at most {most} frames each)", needs.model_copy(
        update={"sizes": sizes}
    )


def _smaller_images(needs: SessionNeeds) -> tuple[str, SessionNeeds] | None:
    shapes = needs.policy
    if not isinstance(shapes, PolicyShapes) or shapes.image_tokens % 4:  # an odd grid of tokens cannot be halved
        return None
    changes = {"patches": shapes.patches // 4, "image_tokens": shapes.image_tokens // 4}
    return "a policy with images of half the width and height (resize_imgs_with_padding)", needs.model_copy(
        update={"policy": shapes.model_copy(update=changes)}
    )


_MEMORY_CHANGES: Sequence[Change] = (_accumulate, _one_worker, _lora)
_FOLDER_CHANGES: Sequence[Change] = (
    _setting(keep_updates=False),
    _setting(keep_weights=False),
    _setting(checkpoint_interval=0),
)
_CHANGES: Mapping[Resource, Sequence[Change]] = {
    "memory": (*_MEMORY_CHANGES, _setting(federation__workers=0)),
    "disk": (*_FOLDER_CHANGES, _smaller_cache, _fewer_frames, _setting(training__features="off")),
    "folder": _FOLDER_CHANGES,
    "time": (
        _setting(evaluation__every_frames=16),
        _fewer_steps,
        _setting(rounds=5),
        _fewer_frames,
        _smaller_images,
        _setting(training__features="off"),
    ),
    "turn": (_fewer_steps, _fewer_frames, _setting(federation__round_timeout_seconds=DAY_SECONDS)),
}
