"""The grid of secure sums must be fine enough for clients and clipping, before anybody trains."""

from typing import Any

import pytest

from zk0.errors import SettingsError
from zk0.evaluation.secure_grid import check_secure_grid
from zk0.records import Member
from zk0.settings.loading import parse_session
from zk0.settings.session import Session

VALUES = 99_880_992


def session(clip_norm: float | None = None, **federation: Any) -> Session:
    values = {
        "name": "grid", "rounds": 3, "policy": {"path": "tiny"}, "normalization": "pooled",
        "clients": [{"name": name, "dataset": f"x/{name}"} for name in "abc"],
        "federation": {"secure": True, "min_updates": 3, **federation},
        "aggregation": {"quarantine_factor": 0} | ({} if clip_norm is None else {"clip_norm": clip_norm}),
        "training": {"local_steps": 1000, "lr": 1e-4},
        "evaluation": {"datasets": [{"dataset": "x/unseen"}], "clients_frequency": 0},
    }  # fmt: skip
    return parse_session(values, "here")


def members(count: int, frames: int = 500) -> list[Member]:
    moments = {"count": frames, "mean": [0.0], "std": [0.0], "min": [0.0], "max": [0.0]}
    values = {
        "dataset": "d", "report": {"dataset": "d", "root": ""}, "split": {"train": (0,), "held_out": ()},
        "train_frames": frames, "statistics": {"state": moments, "action": moments},
        "train_digests": (), "held_out_digests": (),
    }  # fmt: skip
    return [Member.model_validate({"client": f"c{number}", **values}) for number in range(count)]


def test_words_of_16_bits_are_for_a_limited_number_of_clients() -> None:
    check_secure_grid(session(), members(128), VALUES)
    check_secure_grid(session(secure_bits=32), members(1000), VALUES)
    check_secure_grid(session(fraction_fit=0.1), members(1000), VALUES)
    with pytest.raises(SettingsError, match=r"16 with 129 clients .* at most 128: .* federation.secure_bits = 32"):
        check_secure_grid(session(), members(129), VALUES)


def test_rounding_must_be_small_beside_the_norm_that_is_clipped_to() -> None:
    """With 30 clients and the full policy it would take half of a norm of 0.5, and with 100 all of it."""
    check_secure_grid(session(clip_norm=0.5), members(4), VALUES)
    check_secure_grid(session(clip_norm=0.5, secure_bits=32), members(30), VALUES)
    with pytest.raises(SettingsError, match=r"clip_norm 0\.5 .* may take 0\.266 of it .*clip_norm to 2\.7 or more"):
        check_secure_grid(session(clip_norm=0.5), members(30), VALUES)
    check_secure_grid(session(clip_norm=2.8), members(30), VALUES)


def test_the_client_with_the_fewest_frames_decides() -> None:
    check_secure_grid(session(clip_norm=0.5), members(3), VALUES)
    with pytest.raises(SettingsError, match="rounding 99,880,992 weights may take"):
        check_secure_grid(session(clip_norm=0.5), [*members(2), *members(1, frames=20)], VALUES)
