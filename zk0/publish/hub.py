"""A policy folder becomes one commit and one tag of a repository on the Hub.

Whatever was cut short can be called again: content that has arrived is not sent twice, an unchanged folder makes no
commit, and a tag that is there already stays.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from zk0.errors import PublishError, TransientError
from zk0.records import Record

TOKEN = "HF_TOKEN"
_KEPT = ".gitattributes"
"""Made by the Hub; says which files are large."""
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class Pushed(Record):
    """Where a folder lies on the Hub."""

    revision: str
    commit: str
    url: str


def push_folder(
    folder: Path, repo_id: str, *, private: bool, revision: str, message: str, token: SecretStr | None
) -> Pushed:
    """Make the repository's main branch equal to `folder` in one commit, and call that commit `revision`.

    A repository that does not exist is made, private or public; one that exists must be as `private` says.

    Raises:
        PublishError: there is no token, the Hub refuses it, or the repository is not what was asked for.
        TransientError: the Hub does not answer; the same call may work later.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    files = sorted(f for f in folder.rglob("*") if f.is_file())
    if not files:
        raise PublishError(f"{folder}: nothing in it; expected the folder of a saved policy")
    disable_progress_bars()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=_usable(token))
    with _told(repo_id):
        _make(api, repo_id, private)
        names = [f.relative_to(folder).as_posix() for f in files]
        gone = sorted(set(api.list_repo_files(repo_id)) - {*names, _KEPT})
        adding = [CommitOperationAdd(name, str(f)) for name, f in zip(names, files, strict=True)]
        removing = [CommitOperationDelete(name) for name in gone]
        commit = api.create_commit(repo_id, [*adding, *removing], commit_message=message)
        _tag(api, repo_id, revision, commit.oid)
    return Pushed(revision=revision, commit=commit.oid, url=f"{api.endpoint}/{repo_id}/tree/{revision}")


def check_ready(token: SecretStr | None) -> None:
    """Raises PublishError where a push would fail before its first request: no token, or told to stay offline."""
    _usable(token)


def _usable(token: SecretStr | None) -> str:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise PublishError("HF_HUB_OFFLINE is set, so nothing can be pushed; set HF_HUB_OFFLINE=0")
    if found := token.get_secret_value() if token else get_token():
        return found
    raise PublishError(f"no token for the Hub; expected {TOKEN} in the environment or in .env, or `hf auth login`")


def _make(api: Any, repo_id: str, private: bool) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = bool(api.model_info(repo_id).private)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
        found = bool(api.model_info(repo_id).private)
    if found != private:
        is_now, asked = ("private", "public") if found else ("public", "private")
        raise PublishError(f"{repo_id}: is {is_now}, expected {asked}; change it on the Hub or ask for a {is_now} one")


def _tag(api: Any, repo_id: str, name: str, commit: str) -> None:
    there = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    if there.get(name, commit) != commit:
        api.delete_tag(repo_id, tag=name)
    if there.get(name) != commit:
        api.create_tag(repo_id, tag=name, revision=commit, exist_ok=True)


@contextmanager
def _told(repo_id: str) -> Iterator[None]:
    """What the client raises, as our errors; a token is in none of its messages."""
    from httpx import TransportError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HfHubHTTPError as e:
        status = e.response.status_code
        if status in _AGAIN:
            raise TransientError(f"{repo_id}: the Hub answers {status}; later it may take it") from e
        if status in (401, 403):
            raise PublishError(
                f"{repo_id}: the Hub refuses the token ({status}); expected one that may write there, in {TOKEN}"
            ) from e
        raise PublishError(f"{repo_id}: the Hub refuses ({status}: {_line(e)})") from e
    except (TransportError, ConnectionError, TimeoutError) as e:
        raise TransientError(f"{repo_id}: the Hub does not answer ({type(e).__name__}: {_line(e)})") from e
    except (HFValidationError, ValueError) as e:
        raise PublishError(f"{repo_id}: {_line(e)}") from e
    except RuntimeError as e:  # large files are sent by threads, which wrap what they meet
        if isinstance(e.__cause__, TransportError | HfHubHTTPError):
            raise TransientError(f"{repo_id}: a file did not arrive ({_line(e.__cause__)})") from e
        raise


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
