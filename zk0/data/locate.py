"""The folder of a dataset, from its URI: a local path or a repository on the Hugging Face Hub.

A download is of one commit, whose files are all there and no others; that commit is stored beside them.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from zk0.errors import DatasetError, HubUnavailable, first_line
from zk0.hub_outages import HUB_ERRORS, hub_outage
from zk0.settings.dataset_settings import LOCAL_SCHEME
from zk0.settings.home_folder import expand_home
from zk0.storage.atomic import atomic_write_text
from zk0.storage.disk_space import translate_disk_full

COMMIT_FILE = ".cache/zk0-commit"
"""File in the folder of a complete download that names its commit; the check skips hidden folders."""
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _HubDataset(NamedTuple):
    name: str
    """user/name."""
    revision: str | None
    """Commit, tag or branch; None: the newest commit of the main branch."""

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def locate(uri: str, cache: Path) -> Path:
    """Return the folder of a dataset: `local:/path` as it is, `hf:user/name` downloaded into `cache`.

    `hf:user/name@REVISION` is a commit, a tag or a branch, in a folder of its own; `hf:` may be left out.

    Raises:
        DatasetError: a local folder has no meta/info.json, or the Hub does not have the dataset.
        HubUnavailable: the Hub cannot be reached now.
        DiskFull: the download does not fit.
    """
    if uri.startswith(LOCAL_SCHEME):
        root = expand_home(uri.removeprefix(LOCAL_SCHEME))
        if not (root / "meta" / "info.json").is_file():
            raise DatasetError(f"{uri}: no LeRobot dataset at {root} (meta/info.json is missing)")
        return root
    return _download(_hub_dataset(uri), downloaded_folder(uri, cache))


def locate_unchecked(uri: str, cache: Path) -> Path:
    """Return the folder of a dataset like `locate`, but accept a local folder without meta/info.json.

    The check and the repair use it: they report what is missing.

    Raises:
        DatasetError: a local folder does not exist, or the Hub does not have the dataset.
        HubUnavailable: the Hub cannot be reached now.
    """
    if not uri.startswith(LOCAL_SCHEME):
        return locate(uri, cache)
    root = expand_home(uri.removeprefix(LOCAL_SCHEME))
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

    wanted, target = _hub_dataset(uri), downloaded_folder(uri, cache)
    with _translated_errors(wanted), translate_disk_full(target):
        hf_hub_download(wanted.name, "meta/info.json", repo_type="dataset", revision=wanted.revision, local_dir=target)
    return target


def hub_bytes(uri: str) -> int | None:
    """Return the size of a dataset's files as the Hub names it; None where the Hub does not name all of them.

    Raises:
        DatasetError: the Hub does not have the dataset.
        HubUnavailable: the Hub cannot be reached now.
    """
    from huggingface_hub import HfApi

    wanted = _hub_dataset(uri)
    with _translated_errors(wanted):
        info = HfApi().dataset_info(wanted.name, revision=wanted.revision, files_metadata=True)
    sizes = [one.size for one in info.siblings or ()]
    return None if None in sizes else sum(size or 0 for size in sizes)


def downloaded_folder(uri: str, cache: Path) -> Path:
    """Return the folder that a dataset of the Hub is downloaded to.

    Raises:
        DatasetError: the URI is not one of the Hub.
    """
    return cache / "datasets" / str(_hub_dataset(uri))


def downloaded_commit(root: Path) -> str | None:
    """Return the commit on the Hub that a folder holds completely; None: it is not a complete download."""
    try:
        with (root / COMMIT_FILE).open("rb") as stream:
            found = stream.read(41).decode("ascii", errors="replace").strip()
    except OSError:
        return None
    return found if _COMMIT.fullmatch(found) else None


def _hub_dataset(uri: str) -> _HubDataset:
    scheme, colon, rest = uri.partition(":")
    if scheme == "sim" and colon:
        raise DatasetError(f"{uri}: recordings that a session makes in the simulator; expected a dataset that is there")
    name, at, revision = (rest if colon else uri).partition("@")
    if (colon and scheme != "hf") or name.count("/") != 1 or (at and not _REVISION.fullmatch(revision)):
        raise DatasetError(
            f"{uri}: not a dataset; expected hf:user/name, hf:user/name@REVISION (a commit, tag or branch without /), "
            "user/name, local:/path or sim:task"
        )
    if not colon and (Path(uri) / "meta").is_dir():
        raise DatasetError(f"{uri}: a dataset in a folder; expected local:{uri} (user/name is a dataset of the Hub)")
    return _HubDataset(name, revision or None)


def _download(wanted: _HubDataset, target: Path) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE and downloaded_commit(target):
        return target
    with _translated_errors(wanted), translate_disk_full(target):
        info = HfApi().dataset_info(wanted.name, revision=wanted.revision)
        files = [one.rfilename for one in info.siblings or ()]
        _check_names(wanted, files)
        if info.sha == downloaded_commit(target) and not _missing(target, files):
            return target
        (target / COMMIT_FILE).unlink(missing_ok=True)
        snapshot_download(wanted.name, repo_type="dataset", revision=info.sha, local_dir=target)
    if missing := _missing(target, files):
        # huggingface_hub returns a folder that exists as it is when the Hub stops to respond
        raise HubUnavailable(
            f"{wanted}: {len(missing)} of {len(files)} files are not downloaded ({missing[0]}); try again"
        )
    _remove_others(target, files)
    (target / COMMIT_FILE).parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(target / COMMIT_FILE, f"{info.sha}\n")
    return target


def _check_names(wanted: _HubDataset, files: Sequence[str]) -> None:
    """Check that every file of a repository lies in its folder; git stores no other ones."""
    for file in files:
        if {"", ".", ".."} & {*file.split("/")} or "\\" in file or not file.isprintable():
            raise DatasetError(f"{wanted}: the Hub names a file {file[:100]!r}, expected files of the dataset's folder")


def _missing(target: Path, files: Sequence[str]) -> list[str]:
    return [file for file in files if not (target / file).is_file()]


def _remove_others(target: Path, files: Sequence[str]) -> None:
    """Remove the files of earlier commits; LeRobot would read them too."""
    kept = set(files)
    for path in sorted(target.rglob("*")):
        relative = path.relative_to(target)
        if path.is_file() and relative.parts[0] != ".cache" and relative.as_posix() not in kept:
            path.unlink()


@contextmanager
def _translated_errors(wanted: _HubDataset) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (HFValidationError, *HUB_ERRORS) as e:
        advice = "check the name and the connection"
        if constants.HF_HUB_OFFLINE and isinstance(e, LocalEntryNotFoundError | OfflineModeIsEnabled):
            advice = "HF_HUB_OFFLINE is set: run with HF_HUB_OFFLINE=0 to download it"
        elif isinstance(e, GatedRepoError):
            page = f"{constants.ENDPOINT}/datasets/{wanted.name}"
            advice = f"accept its terms on {page} and set HF_TOKEN to a token of that account"
        elif isinstance(e, RevisionNotFoundError):
            advice = f"{wanted.name} has no revision {wanted.revision}; name a commit, tag or branch of it"
        elif isinstance(e, RepositoryNotFoundError):
            advice = "check the name; if it is private, set HF_TOKEN to a token that may read it"
        elif isinstance(e, EntryNotFoundError):
            advice = "expected a LeRobot dataset, which has that file"
        elif isinstance(e, HfHubHTTPError) and e.response.status_code in (401, 403):
            advice = "set HF_TOKEN to a token that is valid and may read it"
        raise hub_outage(e, str(wanted)) or DatasetError(
            f"{wanted}: cannot be fetched from the Hub ({type(e).__name__}: {first_line(e, 120)}); {advice}, "
            "or bring the data as local:/path"
        ) from e
