"""Settings that may change when a session goes on in another place: they change no weight that it computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zk0.errors import SettingsError
from zk0.settings.dataset_settings import (
    LOCAL_SCHEME,
    ClientSettings,
    EvaluationSetSettings,
    PartitionSettings,
    UsedDataset,
)
from zk0.settings.loading import override_session
from zk0.settings.session import Session, absolute_path
from zk0.settings.training_settings import BUILT_IN_POLICIES

RESUMABLE = (
    "buffer.order_of",
    "cache_dir",
    "disk_limit_gb",
    "federation.absence_seconds",
    "federation.engine",
    "federation.newcomer_seconds",
    "federation.ray_address",
    "federation.round_retries",
    "federation.round_timeout_seconds",
    "federation.server",
    "federation.workers",
    "publish.approval",
    "publish.private",
    "publish.repo_id",
    "tracking.mlflow",
    "tracking.tensorboard",
    "tracking.wandb",
    "training.device",
    "training.feature_cache_gb",
    "training.gpu_share",
)
"""Settings that a session may resume with: where, how fast and how patiently it runs, and what it publishes."""
_RESUMABLE_FOLDERS = ("buffer.order_of", "cache_dir", "federation.server")
REPRODUCIBLE = (
    "output_dir",
    "cache_dir",
    "disk_limit_gb",
    "federation.engine",
    "federation.ray_address",
    "federation.server",
    "federation.workers",
    "training.device",
    "training.feature_cache_gb",
    "training.gpu_share",
)
"""Settings with which a session may be run again to compare its weights: where and how fast it runs."""
NOT_PUBLISHED = {"publish.repo_id": None, "publish.approval": False, "tracking.mlflow": None, "tracking.wandb": "off"}
"""Settings of every session that is run again: what it computes leaves this machine once."""


def absolute_moves(moved: Mapping[str, str], base: Path) -> dict[str, str]:
    """Return moves whose new places are resolved against `base`.

    >>> absolute_moves({"/data": "arms"}, Path("/mnt"))
    {'/data': '/mnt/arms'}
    """
    return {before: absolute_path(now, base) for before, now in moved.items()}


def resumed_session(
    session: Session, overrides: Mapping[str, Any], moved: Mapping[str, str], where: str, base: Path
) -> Session:
    """Return the settings with which a session goes on in another place.

    Args:
        session: the settings that it began with.
        overrides: by dotted name, of `RESUMABLE`.
        moved: folder that the session knows -> folder where its content lies now.
        where: the session's folder, for errors.
        base: folder against which relative folders in `overrides` are resolved.

    Raises:
        SettingsError: a setting may not change, a value is invalid, or no path of the session lies in a moved folder.
    """
    if other := sorted(overrides.keys() - set(RESUMABLE)):
        raise SettingsError(
            f"{where}: a session resumes with its own {', '.join(other)}; expected only {', '.join(RESUMABLE)}"
        )
    given = ((name, overrides.get(name)) for name in _RESUMABLE_FOLDERS)
    folders = {name: absolute_path(path, base) for name, path in given if isinstance(path, str)}
    changed = override_session(session, {**overrides, **folders}, where) if overrides else session
    return with_moved_folders(changed, moved, where)


def with_moved_folders(session: Session, moved: Mapping[str, str], where: str) -> Session:
    """Return the session with the folders where its datasets, its policy, its cache and its server lie now.

    Names of datasets stay, so that records before and after the move have the same; their `place` changes. The same
    move again changes nothing.

    Raises:
        SettingsError: no path of the session lies in a moved folder, before or after the move.
    """
    for before, now in moved.items():
        paths = _local_paths(session)
        if not any(_lies_in(path, folder) for path in paths for folder in (before, now)):
            raise SettingsError(
                f"{where}: --moved {before}={now}: none of its paths lies there; found {', '.join(sorted(paths))}"
            )
        session = _moved(session, before, now)
    return session


def _moved(session: Session, before: str, now: str) -> Session:
    def placed[T: (ClientSettings, PartitionSettings, EvaluationSetSettings)](one: T) -> T:
        path = _dataset_path(one)
        return one.model_copy(update={"place": there}) if path and (there := moved_path(path, before, now)) else one

    def there_or_same(path: str) -> str:
        return moved_path(path, before, now) or path

    path, order_of = session.policy.path, session.buffer.order_of
    policy = path if path in BUILT_IN_POLICIES else there_or_same(path)
    datasets = tuple(placed(one) for one in session.evaluation.datasets)
    return session.model_copy(
        update={
            "clients": tuple(placed(one) for one in session.clients),
            "partition": session.partition and placed(session.partition),
            "evaluation": session.evaluation.model_copy(update={"datasets": datasets}),
            "policy": session.policy.model_copy(update={"path": policy}),
            "federation": session.federation.model_copy(update={"server": there_or_same(session.federation.server)}),
            "buffer": session.buffer.model_copy(update={"order_of": order_of and there_or_same(order_of)}),
            "cache_dir": there_or_same(session.cache_dir),
            "output_dir": there_or_same(session.output_dir),
        }
    )


def _local_paths(session: Session) -> set[str]:
    datasets = (*session.clients, *session.evaluation.datasets, *([session.partition] if session.partition else []))
    places = {path for one in datasets if (path := _dataset_path(one))}
    order_of = [session.buffer.order_of] if session.buffer.order_of else []
    return {*places, *order_of, session.policy.path, session.cache_dir, session.output_dir, session.federation.server}


def _dataset_path(one: UsedDataset) -> str | None:
    """Return where a dataset of this machine lies; None for one of the Hub or of the simulator."""
    return one.place or (one.dataset.removeprefix(LOCAL_SCHEME) if one.dataset.startswith(LOCAL_SCHEME) else None)


def _lies_in(path: str, folder: str) -> bool:
    return Path(path).is_absolute() and Path(path).is_relative_to(folder)


def moved_path(path: str, before: str, now: str) -> str | None:
    """Return the path in its new folder; None if it does not lie in the old one."""
    return str(Path(now) / Path(path).relative_to(before)) if _lies_in(path, before) else None
