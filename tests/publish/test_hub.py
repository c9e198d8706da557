"""Push with the real client to a local Hub: first and repeated pushes, refusals, interruptions."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from zk0.audit.ledger import Ledger
from zk0.errors import CheckpointError, PublishError, TransientError
from zk0.publish.hub import push_policy_folder
from zk0.publish.push_checkpoint import push_checkpoint
from zk0.publish.tokens import find_secret
from zk0.rules.release import Release, decide_release
from zk0.storage.session_folder import SessionFolder

TOKEN = "hf_aSecretThatNobodyMayRead"


def push(here: SessionFolder, token: str | None = TOKEN, **changes: Any) -> Release:
    history = Ledger(here.ledger).read()
    release = decide_release(here.read_session().publish, history, len(history) - 1)
    assert release.outcome == "allowed", release.reason
    release = release.model_copy(update=changes)
    return push_checkpoint(here, history[-1], release, SecretStr(token) if token else None)


def content(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_first_push_makes_a_private_repository_with_a_tag(hub: Any, finished_session: Any) -> None:
    here = finished_session("first")
    done = push(here)
    repository = hub.repositories["lab/arm"]
    assert repository.private
    assert repository.files() == content(here.checkpoint(20))
    assert len(repository.commits) == 1
    oid, message, _ = repository.commits[0]
    assert message.startswith("first, round 20: 20 rounds ran, and the loss on unseen data fell by 0.2")
    assert repository.tags == {"first_round_20": oid}
    assert (done.outcome, done.revision, done.commit) == ("pushed", "first_round_20", oid)
    assert done.url == f"{hub.url}/lab/arm/tree/first_round_20"


def test_a_second_session_replaces_main_and_keeps_the_tag_of_the_first(hub: Any, finished_session: Any) -> None:
    one, two = finished_session("one"), finished_session("two", scale=2.0)
    (one.checkpoint(20) / "old.json").write_text("{}")
    push(one)
    push(two)
    repository = hub.repositories["lab/arm"]
    assert repository.files() == content(two.checkpoint(20))
    assert repository.files("one_round_20") == content(one.checkpoint(20))
    assert list(repository.tags) == ["one_round_20", "two_round_20"]
    assert hub.count_requests("POST /api/repos/create") == 1


def test_the_same_push_again_changes_nothing(hub: Any, finished_session: Any) -> None:
    here = finished_session()
    first, again = push(here), push(here)
    assert again == first
    assert len(hub.repositories["lab/arm"].commits) == 1
    assert hub.count_requests("PUT /lfs/") == 1


def test_a_public_repository(hub: Any, finished_session: Any) -> None:
    here = finished_session()
    push(here, private=False)
    assert not hub.repositories["lab/arm"].private
    with pytest.raises(
        PublishError, match=r"lab/arm: is public, expected private; change it on the Hub or set publish\.private"
    ):
        push(here)
    assert hub.count_requests("POST .*/commit/main") == 1


def test_a_private_model_is_never_pushed_to_a_public_repository(hub: Any, finished_session: Any) -> None:
    push(finished_session("open"), private=False)
    before = hub.count_requests("PUT|commit|preupload")
    with pytest.raises(PublishError, match="is public"):
        push(finished_session("closed", scale=2.0))
    assert hub.count_requests("PUT|commit|preupload") == before


@pytest.mark.parametrize("token", ["hf_wrong", None])
def test_a_refused_token(hub: Any, finished_session: Any, token: str | None, monkeypatch: Any) -> None:
    monkeypatch.delenv("HF_TOKEN")
    message = (
        "no token for the Hub; expected HF_TOKEN" if token is None else r"lab/arm: the Hub refuses the token \(401\)"
    )
    with pytest.raises(PublishError, match=message) as found:
        push(finished_session(), token)
    assert "\n" not in str(found.value)
    assert not hub.repositories


def test_a_token_without_write_access(hub: Any, finished_session: Any) -> None:
    hub.status = lambda request: 403 if request.endswith("/repos/create") else None
    with pytest.raises(PublishError, match=r"refuses the token \(403\); expected a token with write access"):
        push(finished_session())


@pytest.mark.parametrize("status", [500, 429])
def test_a_failing_hub_can_be_tried_again(hub: Any, finished_session: Any, status: int) -> None:
    here = finished_session()
    hub.status = lambda request: status if "/commit/" in request else None
    with pytest.raises(TransientError, match=f"lab/arm: the Hub responds with status {status}"):
        push(here)
    assert not hub.repositories["lab/arm"].tags
    hub.status = lambda request: None
    push(here)
    assert hub.repositories["lab/arm"].files() == content(here.checkpoint(20))
    assert hub.count_requests("PUT /lfs/") == 1, "uploaded content was sent again"


def test_an_interruption_before_the_tag_is_repaired(hub: Any, finished_session: Any) -> None:
    here = finished_session()
    hub.cut = lambda request: "/tag/" in request
    with pytest.raises(TransientError, match="the Hub does not respond"):
        push(here)
    hub.cut = lambda request: False
    done = push(here)
    repository = hub.repositories["lab/arm"]
    assert len(repository.commits) == 1
    assert repository.tags == {"s_round_20": done.commit}


def test_a_tag_moves_to_the_commit_with_a_corrected_card(hub: Any, finished_session: Any) -> None:
    here = finished_session()
    first = push(here)
    (here.checkpoint(20) / "README.md").write_text("---\nlicense: mit\n---\nCorrected.")
    second = push(here)
    assert hub.repositories["lab/arm"].tags == {"s_round_20": second.commit}
    assert second.commit != first.commit


def test_an_interruption_in_a_large_file(hub: Any, finished_session: Any, monkeypatch: Any) -> None:
    """Uploaded by Xet, as the Hub does today."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    here = finished_session()
    hub.cut = lambda request: "/xorbs/" in request
    with pytest.raises(TransientError, match="lab/arm: the Hub does not respond"):
        push(here)
    assert hub.repositories["lab/arm"].commits == []
    hub.cut = lambda request: False
    done = push(here)
    files = hub.repositories["lab/arm"].files(done.revision)
    assert files.keys() == content(here.checkpoint(20)).keys()
    assert hub.count_requests("POST /cas/v1/xorbs") >= 2
    import hashlib

    expected = hashlib.sha256((here.checkpoint(20) / "model.safetensors").read_bytes()).hexdigest()
    assert files["model.safetensors"] == f"xet {expected}".encode()


def test_no_response(finished_session: Any, hub: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransientError, match=r"lab/arm: the Hub does not respond \(ConnectError"):
        push(finished_session())


def test_offline_mode_is_refused(hub: Any, finished_session: Any, monkeypatch: Any) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set, so nothing can be pushed"):
        push(finished_session())


def test_weights_that_differ_from_the_ledger_are_not_pushed(hub: Any, finished_session: Any) -> None:
    one, other = finished_session("one"), finished_session("other", scale=2.0)
    (other.checkpoint(20) / "model.safetensors").replace(one.checkpoint(20) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"digest of the trained weights .*: not those of round 20"):
        push(one)
    (one.checkpoint(20) / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json missing; expected the saved policy of a round"):
        push(one)
    assert hub.requests == []


def test_an_invalid_card_is_refused_before_anything_is_sent(hub: Any, finished_session: Any) -> None:
    here = finished_session()
    (here.checkpoint(20) / "README.md").write_text("no front matter")
    with pytest.raises(PublishError, match=r"lab/arm: Invalid metadata in README.md"):
        push(here)
    assert hub.count_requests("PUT") == 0


def test_the_token_is_never_printed_or_written(
    hub: Any, finished_session: Any, caplog: pytest.LogCaptureFixture, capfd: Any, monkeypatch: Any
) -> None:
    here: SessionFolder = finished_session()
    failures: list[Callable[[str], bool]] = [
        lambda request: "/commit/" in request,
        lambda request: request.startswith("GET /api/models"),
    ]
    with caplog.at_level(logging.DEBUG):
        for failure in failures:
            hub.cut = failure
            with pytest.raises(TransientError) as found:
                push(here)
            assert TOKEN not in str(found.value)
        hub.cut = lambda request: False
        push(here).write(here.release)
    printed = "".join(capfd.readouterr()) + caplog.text
    assert TOKEN not in printed
    assert not [f for f in here.path.rglob("*") if f.is_file() and TOKEN.encode() in f.read_bytes()]
    assert TOKEN not in repr(find_secret("HF_TOKEN"))
    assert json.loads(here.release.read_text())["outcome"] == "pushed"


def test_a_token_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert find_secret("HF_TOKEN") is None
    (tmp_path / ".env").write_text('HF_TOKEN="hf_from_the_file"\n')
    found = find_secret("HF_TOKEN")
    assert found is not None
    assert found.get_secret_value() == "hf_from_the_file"
    monkeypatch.setenv("HF_TOKEN", "hf_from_the_environment")
    found = find_secret("HF_TOKEN")
    assert found is not None
    assert found.get_secret_value() == "hf_from_the_environment"


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="is empty; expected the folder of a saved policy"):
        push_policy_folder(tmp_path, "lab/arm", private=True, revision="r", message="m", token=None)
