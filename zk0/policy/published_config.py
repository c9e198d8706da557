"""What the config.json of a policy alone tells, before weights are downloaded and libraries imported."""

import json
from pathlib import Path
from typing import Any

from zk0.errors import PolicyError, first_line
from zk0.hub_outages import hub_outage
from zk0.settings.session import Session
from zk0.settings.training_settings import BASE, TINY

CONFIG_FILE = "config.json"
BASE_POLICY_FOLDER = Path(__file__).parent / "smolvla" / "base_policy"
"""The folder of the policy `base`."""
_TYPES = ("smolvla", "smolvla_bundled")
_NO_CACHE = {
    "add_image_special_tokens": "adds image tokens",
    "empty_cameras": "adds empty cameras",
}
"""Fields of SmolVLA's configuration with which features cannot be cached, if they are set."""


def policy_config_faults(session: Session) -> list[str]:
    """Return everything in a published policy's config.json that the session cannot work with.

    The policies that ship with zk0 have none.
    """
    if session.policy.path in (TINY, BASE):
        return []
    try:
        config = read_published_config(session.policy.path, session.policy.revision)
    except PolicyError as e:
        return [str(e)]
    return [*_kind_faults(config), *_size_faults(config, len(session.contract.joints)), *_cache_faults(config, session)]


def read_published_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """Return the content of config.json in a policy's folder, or of its repository on the Hub.

    Raises:
        PolicyError: there is no such file, or it is no JSON object.
        HubUnavailable: the Hub cannot be reached now.
    """
    local = Path(path) / CONFIG_FILE
    try:
        file = local if Path(path).is_dir() else _download_config(path, revision)
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise hub_outage(e, path) or PolicyError(
            f"{CONFIG_FILE} cannot be loaded ({type(e).__name__}: {first_line(e, 120)}); "
            "expected `tiny`, `base`, a folder saved by lerobot, or a name on the Hub that can be reached"
        ) from e
    if not isinstance(config, dict):
        raise PolicyError(f"{CONFIG_FILE} holds a {type(config).__name__}, expected the settings of a policy")
    return config


def _download_config(path: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(path, CONFIG_FILE, revision=revision))
    except HfHubHTTPError as e:
        raise OSError(first_line(e)) from e


def locate_policy_file(path: str, name: str, revision: str | None = None) -> Path | None:
    """Return a file of a policy, in its folder or in the Hub's cache (downloaded if needed); None if it has none.

    Raises:
        PolicyError: the file cannot be downloaded.
        HubUnavailable: the Hub cannot be reached now.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    if Path(path).is_dir():
        return found if (found := Path(path) / name).is_file() else None
    try:
        return Path(hf_hub_download(path, name, revision=revision))
    except LocalEntryNotFoundError as e:
        raise hub_outage(e, path) or PolicyError(
            f"{path}: {name} cannot be reached ({first_line(e)}); expected it on the Hub"
        ) from e
    except EntryNotFoundError:
        return None
    except (OSError, ValueError, HfHubHTTPError) as e:
        raise hub_outage(e, path) or PolicyError(
            f"{path}: {name} cannot be loaded ({first_line(e)}); expected it on the Hub"
        ) from e


def _kind_faults(config: dict[str, Any]) -> list[str]:
    kind = config.get("type")
    faults = [] if kind in _TYPES else [f"a policy of type {kind}, expected {' or '.join(_TYPES)}"]
    unfrozen = [name for name in ("train_expert_only", "freeze_vision_encoder") if config.get(name) is False]
    if unfrozen:
        faults.append(f"{' and '.join(unfrozen)} false, expected true: only the action expert is trained")
    return faults


def _size_faults(config: dict[str, Any], joints: int) -> list[str]:
    sizes = {name: config.get(name) for name in ("max_state_dim", "max_action_dim")}
    return [
        f"{name} {size}, expected at least the contract's {joints} joints"
        for name, size in sizes.items()
        if isinstance(size, int) and size < joints
    ]


def _cache_faults(config: dict[str, Any], session: Session) -> list[str]:
    """Reasons for which features cannot be cached, as `zk0.policy.smolvla.prefix.check_prefix_cacheable`."""
    if session.training.features == "off":
        return []
    found = [f"{name} {what}" for name, what in _NO_CACHE.items() if config.get(name)]
    if (config.get("prefix_length") or 0) > 0:
        found.append(f"prefix_length {config['prefix_length']} pads the prefix")
    if config.get("attention_mode", "cross_attn") != "cross_attn":
        found.append(f"attention_mode {config['attention_mode']} is not cross_attn")
    return [f'{reason}, so features cannot be cached; set training.features = "off"' for reason in found]
