"""Push a policy folder to the Hub as one commit and one tag.

An interrupted push can be repeated: the Hub skips content that it has, an unchanged folder makes no commit, and an
existing tag of the commit stays.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from zk0.errors import HubUnavailable, PublishError, first_line
from zk0.hub_outages import hub_outage
from zk0.records import Record
from zk0.storage.listing import files_below

HUB_TOKEN = "HF_TOKEN"
"""Name of the environment variable with the token."""
_HUB_FILE = ".gitattributes"
"""The Hub creates it; it lists the large files."""


class HubRevision(Record):
    """A revision of a repository on the Hub: tag, commit and URL."""

    revision: str
    commit: str
    url: str


def push_policy_folder(
    folder: Path, repo_id: str, *, private: bool, revision: str, message: str, token: SecretStr | None
) -> HubRevision:
    """Make the main branch of a repository equal to a folder in one commit, and tag that commit.

    Args:
        folder: its files become the content of the repository.
        repo_id: user/name.
        private: create the repository as private; an existing one must have this visibility.
        revision: the tag; an existing tag is moved to the commit.
        message: of the commit.
        token: None: the token of `hf auth login`.

    Raises:
        PublishError: there is no token, the Hub refuses it, or the repository has another visibility.
        HubUnavailable: the Hub does not respond; the same call may succeed later.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    files = sorted(f for f in files_below(folder) if f.is_file())
    if not files:
        raise PublishError(f"{folder}: is empty; expected the folder of a saved policy")
    disable_progress_bars()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=_token_value(token))
    with _translated_errors(repo_id):
        _create_repository(api, repo_id, private)
        names = [f.relative_to(folder).as_posix() for f in files]
        removed = sorted(set(api.list_repo_files(repo_id)) - {*names, _HUB_FILE})
        additions = [CommitOperationAdd(name, str(f)) for name, f in zip(names, files, strict=True)]
        deletions = [CommitOperationDelete(name) for name in removed]
        commit = api.create_commit(repo_id, [*additions, *deletions], commit_message=message)
        _tag(api, repo_id, revision, commit.oid)
    return HubRevision(revision=revision, commit=commit.oid, url=f"{api.endpoint}/{repo_id}/tree/{revision}")


def remote_file_oids(repo_id: str, revision: str, token: SecretStr | None) -> dict[str, str]:
    """Return for each file of a repository its SHA-256 where the Hub stores it as a large file, else git's oid of it.

    Raises:
        PublishError: there is no token, or the Hub refuses the request.
        HubUnavailable: the Hub does not respond; the same call may succeed later.
    """
    from huggingface_hub import HfApi, RepoFile

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=_token_value(token))
    with _translated_errors(repo_id):
        entries = list(api.list_repo_tree(repo_id, recursive=True, revision=revision))
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def check_hub_access(token: SecretStr | None) -> None:
    """Check for a token and for online mode, before anything is trained.

    Raises:
        PublishError: there is no token, or HF_HUB_OFFLINE is set.
    """
    _token_value(token)


def _token_value(token: SecretStr | None) -> str:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise PublishError("HF_HUB_OFFLINE is set, so nothing can be pushed; set HF_HUB_OFFLINE=0")
    if found := token.get_secret_value() if token else get_token():
        return found
    raise PublishError(f"no token for the Hub; expected {HUB_TOKEN} in the environment or in .env, or `hf auth login`")


def _create_repository(api: Any, repo_id: str, private: bool) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        is_private = bool(api.model_info(repo_id).private)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
        is_private = bool(api.model_info(repo_id).private)
    if is_private != private:
        actual, requested = ("private", "public") if is_private else ("public", "private")
        raise PublishError(f"{repo_id}: is {actual}, expected {requested}; change it on the Hub or set publish.private")


def _tag(api: Any, repo_id: str, name: str, commit: str) -> None:
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    if tags.get(name, commit) != commit:
        api.delete_tag(repo_id, tag=name)
    if tags.get(name) != commit:
        api.create_tag(repo_id, tag=name, revision=commit, exist_ok=True)


@contextmanager
def _translated_errors(repo_id: str) -> Iterator[None]:
    """Translate the errors of huggingface_hub into ours; none of its messages contains the token."""
    from httpx import TransportError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HfHubHTTPError as e:
        if outage := hub_outage(e, repo_id):
            raise outage from e
        status = e.response.status_code
        if status in (401, 403):
            raise PublishError(
                f"{repo_id}: the Hub refuses the token ({status}); expected a token with write access, in {HUB_TOKEN}"
            ) from e
        raise PublishError(f"{repo_id}: the Hub refuses ({status}: {first_line(e)})") from e
    except (TransportError, ConnectionError, TimeoutError) as e:
        reason = f"the Hub does not respond ({type(e).__name__}: {first_line(e)})"
        raise hub_outage(e, repo_id) or HubUnavailable(f"{repo_id}: {reason}") from e
    except (HFValidationError, ValueError) as e:
        raise PublishError(f"{repo_id}: {first_line(e)}") from e
    except RuntimeError as e:  # large files are sent by threads, which wrap their errors
        if isinstance(e.__cause__, TransportError | HfHubHTTPError):
            raise HubUnavailable(f"{repo_id}: the upload of a file failed ({first_line(e.__cause__)})") from e
        raise
