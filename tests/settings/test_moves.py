"""Settings that may change when a session goes on in another place."""

from pathlib import Path
from typing import Any

import pytest

from zk0.errors import SettingsError
from zk0.settings.loading import override_session, parse_session
from zk0.settings.moves import NOT_PUBLISHED, resumed_session, with_moved_folders
from zk0.settings.session import Session


def session(**changes: Any) -> Session:
    values: dict[str, Any] = {
        "clients": [{"name": "a", "dataset": "local:/data/arms/a"}, {"name": "b", "dataset": "hf:lab/b"}],
        "evaluation": {"datasets": [{"dataset": "local:/data/unseen"}, {"dataset": "sim:lift-red"}]},
        "policy": {"path": "/data/policies/start"},
        "cache_dir": "/home/lab/cache",
    }
    return parse_session(values | changes, "test")


def test_datasets_keep_their_names_and_get_a_place() -> None:
    found = with_moved_folders(session(), {"/data": "/mnt/new", "/home/lab/cache": "/scratch"}, "here")
    assert [c.dataset for c in found.clients] == ["local:/data/arms/a", "hf:lab/b"]
    assert [c.location for c in found.clients] == ["local:/mnt/new/arms/a", "hf:lab/b"]
    assert [s.location for s in found.evaluation_sets()] == ["local:/mnt/new/unseen", "sim:lift-red"]
    assert (found.policy.path, found.cache_dir) == ("/mnt/new/policies/start", "/scratch")


def test_the_same_move_again_changes_nothing_and_a_second_move_does() -> None:
    once = with_moved_folders(session(), {"/data": "/mnt/new"}, "here")
    assert with_moved_folders(once, {"/data": "/mnt/new"}, "here") == once
    twice = with_moved_folders(once, {"/mnt/new": "/mnt/newer"}, "here")
    assert twice.clients[0].location == "local:/mnt/newer/arms/a"
    assert twice.clients[0].dataset == "local:/data/arms/a"


def test_a_shared_dataset_is_moved_for_all_clients_and_held_out_episodes() -> None:
    shared = session(clients=[], partition={"dataset": "local:/data/all", "clients": 3}, evaluation={})
    found = with_moved_folders(shared, {"/data": "/mnt"}, "here")
    assert {c.location for c in found.local_clients()} == {"local:/mnt/all"}
    assert [s.location for s in found.evaluation_sets()] == ["local:/mnt/all"]


def test_a_folder_that_holds_nothing_of_the_session() -> None:
    with pytest.raises(SettingsError, match=r"--moved /dat=/mnt: none of its paths lies there; found .*/data/arms/a"):
        with_moved_folders(session(), {"/dat": "/mnt"}, "here")


def test_what_a_session_may_resume_with() -> None:
    found = resumed_session(session(), {"federation.workers": 5, "training.device": "cpu"}, {}, "here", Path("/x"))
    assert (found.federation.workers, found.training.device) == (5, "cpu")
    with pytest.raises(SettingsError, match=r"here: a session resumes with its own seed, training\.lr; expected only"):
        resumed_session(session(), {"training.lr": 1e-3, "seed": 1}, {}, "here", Path("/x"))


def test_a_session_that_is_run_again_publishes_nothing() -> None:
    published = session(
        publish={"repo_id": "lab/arm", "approval": True}, tracking={"wandb": "online", "mlflow": "http://127.0.0.1:1"}
    )
    found = override_session(published, NOT_PUBLISHED, "here")
    assert (found.publish.repo_id, found.publish.approval, found.tracking.services) == (None, False, ())


def test_relative_folders_are_those_of_the_directory_that_a_session_resumes_in() -> None:
    """They are recorded, and read later by processes in other directories."""
    changes = {"cache_dir": "cache", "federation.server": "../server"}
    found = resumed_session(session(), changes, {}, "here", Path("/mnt/lab"))
    assert (found.cache_dir, found.federation.server) == ("/mnt/lab/cache", "/mnt/server")
    home = resumed_session(session(), {"cache_dir": "~/cache"}, {}, "here", Path("/mnt/lab"))
    assert home.cache_dir == str(Path.home().resolve() / "cache")
    with pytest.raises(SettingsError, match="cache_dir"):
        resumed_session(session(), {"cache_dir": 5}, {}, "here", Path("/mnt/lab"))


def test_the_session_whose_order_of_arrivals_is_repeated() -> None:
    buffered = session(
        federation={"mode": "buffered"}, buffer={"order_of": "/old/outputs/first"}, output_dir="/elsewhere"
    )
    found = with_moved_folders(buffered, {"/old": "/new"}, "here")
    assert found.buffer.order_of == "/new/outputs/first"
    resumed = resumed_session(buffered, {"buffer.order_of": "first"}, {}, "here", Path("/mnt"))
    assert resumed.buffer.order_of == "/mnt/first"
