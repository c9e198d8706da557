"""Where a data set lies, by its name."""

from pathlib import Path

from zk0.errors import DatasetError


def locate(uri: str, cache: Path) -> Path:
    """The folder of a data set: `local:/path` as it is, `hf:user/name` or `user/name` downloaded into the cache.

    Raises:
        DatasetError: there is no such folder, or the Hub does not have it or cannot be reached.
    """
    scheme, colon, rest = uri.partition(":")
    if colon and scheme == "local":
        root = Path(rest).expanduser()
        if not (root / "meta" / "info.json").is_file():
            raise DatasetError(f"{uri}: no LeRobot data set at {root} (meta/info.json is missing)")
        return root
    name = rest if colon else uri
    if (colon and scheme != "hf") or name.count("/") != 1:
        raise DatasetError(f"{uri}: not a data set; expected hf:user/name, user/name, local:/path or sim:task")
    return _download(name, cache / "datasets" / name)


def _download(name: str, target: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        return Path(snapshot_download(name, repo_type="dataset", local_dir=target))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as e:
        raise DatasetError(
            f"{name}: cannot be fetched from the Hub ({type(e).__name__}: {str(e).splitlines()[0]}); "
            "check the name and the connection, or bring the data as local:/path"
        ) from e
