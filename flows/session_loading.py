"""Load a session that is going to run: all its settings are checked before anything is started for it."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flows.packaged_files import find_session_file
from zk0.aggregation.check_strategy import check_strategy
from zk0.audit.recorded_order import recorded_arrivals
from zk0.errors import DatasetError
from zk0.settings.loading import load_session
from zk0.settings.session import Session
from zk0.storage.writable import check_writable


def load_session_to_run(config: Path, overrides: Mapping[str, Any] | None = None) -> Session:
    """Return the session of a TOML file or of zk0's own (`demo`), with paths of the working directory made absolute.

    The command line loads a session to check it before it starts a server, and the flow loads it to run it: within one
    process an unchanged file is parsed once.

    Raises:
        SettingsError: the file cannot be read, a setting is unknown or invalid, or the aggregation strategy does not
            exist or does not fit the other settings.
    """
    file = find_session_file(config)
    return _load(file, _version(file), json.dumps(overrides or {}, default=str), Path.cwd())


@lru_cache(maxsize=1)
def _load(config: Path, version: tuple[int, ...], overrides: str, base: Path) -> Session:
    session = load_session(config, json.loads(overrides), base=base)
    check_strategy(session, str(config))
    return session


def check_session_inputs(session: Session) -> None:
    """Check what can be known of folders, datasets and policy, in seconds and before anything is started.

    Within one process an unchanged session is checked once.

    Raises:
        SettingsError: files cannot be written into the output folder or the cache, or there is no order of arrivals to
            repeat.
        DatasetError: lists every fault in the metadata, by dataset; those of the policy come last.
    """
    _check_inputs(session.model_dump_json())


@lru_cache(maxsize=1)
def _check_inputs(session_json: str) -> None:
    from zk0.data.check.metadata_check import fault_list, metadata_faults
    from zk0.policy.config_faults import policy_config_faults
    from zk0.simulator.tasks import describe_recordings

    session = Session.model_validate_json(session_json)
    check_writable(Path(session.output_dir), "output_dir")
    check_writable(Path(session.cache_dir), "cache_dir")
    recorded_arrivals(session, 1)
    faults = metadata_faults(session, describe_recordings)
    faults[f"policy {session.policy.path}"] = policy_config_faults(session)
    if count := sum(map(len, faults.values())):
        raise DatasetError(fault_list(f"{session.name}: {count} faults, found before anything was started", faults))


def _version(config: Path) -> tuple[int, ...]:
    """Inode, size and time of a file's last change; nothing where it cannot be read, which loading then reports."""
    try:
        found = config.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
