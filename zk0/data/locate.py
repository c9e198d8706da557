"""The folder of a dataset, from its URI: a local path or a repository on the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zk0.errors import DatasetError, first_line
from zk0.hub_outages import hub_outage
from zk0.settings.dataset_settings import LOCAL_SCHEME


def locate(uri: str, cache: Path) -> Path:
    """Return the folder of a dataset: `local:/path` as it is, `hf:user/name` or `user/name` downloaded into `cache`.

    Raises:
        DatasetError: a local folder has no meta/info.json, or the Hub does not have the dataset.
        HubUnavailable: the Hub cannot be reached now.
    """
    if uri.startswith(LOCAL_SCHEME):
        root = Path(uri.removeprefix(LOCAL_SCHEME)).expanduser()
        if not (root / "meta" / "info.json").is_file():
            raise DatasetError(f"{uri}: no LeRobot dataset at {root} (meta/info.json is missing)")
        return root
    return _download(_hub_name(uri), downloaded_folder(uri, cache))


def locate_unchecked(uri: str, cache: Path) -> Path:
    """Return the folder of a dataset like `locate`, but accept a local folder without meta/info.json.

    The check and the repair use it: they report what is missing.

    Raises:
        DatasetError: a local folder does not exist, or the Hub does not have the dataset.
        HubUnavailable: the Hub cannot be reached now.
    """
    if not uri.startswith(LOCAL_SCHEME):
        return locate(uri, cache)
    root = Path(uri.removeprefix(LOCAL_SCHEME)).expanduser()
    if not root.is_dir():
        raise DatasetError(f"{uri}: no such folder; expected a LeRobot dataset with meta, data and videos")
    return root


def locate_metadata(uri: str, cache: Path) -> Path:
    """Return a folder with the dataset's meta/info.json; of a dataset on the Hub only this file is downloaded.

    Raises:
        DatasetError: there is no such file.
        HubUnavailable: the Hub cannot be reached now.
    """
    if uri.startswith(LOCAL_SCHEME):
        return locate(uri, cache)
    from huggingface_hub import hf_hub_download

    name, target = _hub_name(uri), downloaded_folder(uri, cache)
    with _translated_errors(name):
        hf_hub_download(name, "meta/info.json", repo_type="dataset", local_dir=target)
    return target


def downloaded_folder(uri: str, cache: Path) -> Path:
    """Return the folder that a dataset of the Hub is downloaded to.

    Raises:
        DatasetError: the URI is not one of the Hub.
    """
    return cache / "datasets" / _hub_name(uri)


def _hub_name(uri: str) -> str:
    scheme, colon, rest = uri.partition(":")
    name = rest if colon else uri
    if (colon and scheme != "hf") or name.count("/") != 1:
        raise DatasetError(f"{uri}: not a dataset; expected hf:user/name, user/name, local:/path or sim:task")
    return name


def _download(name: str, target: Path) -> Path:
    from huggingface_hub import snapshot_download

    with _translated_errors(name):
        return Path(snapshot_download(name, repo_type="dataset", local_dir=target))


@contextmanager
def _translated_errors(name: str) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as e:
        advice = "check the name and the connection"
        if constants.HF_HUB_OFFLINE and isinstance(e, LocalEntryNotFoundError | OfflineModeIsEnabled):
            advice = "HF_HUB_OFFLINE is set: run with HF_HUB_OFFLINE=0 to download it"
        raise hub_outage(e, name) or DatasetError(
            f"{name}: cannot be fetched from the Hub ({type(e).__name__}: {first_line(e, 120)}); {advice}, "
            "or bring the data as local:/path"
        ) from e
