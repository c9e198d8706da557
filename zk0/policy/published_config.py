"""What the config.json of a policy alone tells, before weights are downloaded and libraries imported."""

import json
from pathlib import Path
from typing import Any

from zk0.errors import PolicyError, first_line
from zk0.hub_outages import HUB_ERRORS, hub_outage
from zk0.settings.training_settings import BASE

CONFIG_FILE = "config.json"
BASE_POLICY_FOLDER = Path(__file__).parent / "smolvla" / "base_policy"
"""The folder of the policy `base`."""
SMOLVLA_TYPES = ("smolvla", "smolvla_bundled")
"""LeRobot's types of policy that are SmolVLA."""
MAX_JSON_BYTES = 40_000_000
"""Largest JSON file of a policy; it may hold the files of a vision-language model, of at most 32 MB."""


def resolve_policy_path(path: str) -> str:
    """The folder of `base`; any other path or name is returned unchanged."""
    return str(BASE_POLICY_FOLDER) if path == BASE else path


def read_published_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """Return the content of config.json in a policy's folder, or of its repository on the Hub.

    Raises:
        PolicyError: there is no such file, or it is no JSON object.
        HubUnavailable: the Hub cannot be reached now.
    """
    local = Path(path) / CONFIG_FILE
    try:
        file = local if Path(path).is_dir() else _download_config(path, revision)
        if (size := file.stat().st_size) > MAX_JSON_BYTES:
            raise ValueError(f"{size} bytes, expected at most {MAX_JSON_BYTES}")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (*HUB_ERRORS, ValueError, RecursionError) as e:
        raise hub_outage(e, path) or PolicyError(
            f"{CONFIG_FILE} cannot be loaded ({type(e).__name__}: {first_line(e, 120)}); "
            "expected a policy that ships with zk0, a folder saved by lerobot, or a name on the Hub that can be reached"
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
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if Path(path).is_dir():
        return found if (found := Path(path) / name).is_file() else None
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise PolicyError(
            f"{path}: no such folder; expected that of a policy, such as outputs/SESSION/models/checkpoint_round_3, or "
            "USER/NAME of the Hub"
        )
    try:
        return Path(hf_hub_download(path, name, revision=revision))
    except LocalEntryNotFoundError as e:
        raise hub_outage(e, path) or PolicyError(
            f"{path}: {name} cannot be reached ({first_line(e)}); expected it on the Hub"
        ) from e
    except EntryNotFoundError:
        return None
    except (*HUB_ERRORS, ValueError) as e:
        raise hub_outage(e, path) or PolicyError(
            f"{path}: {name} cannot be loaded ({first_line(e)}); expected it on the Hub"
        ) from e
