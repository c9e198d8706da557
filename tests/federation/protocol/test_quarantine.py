"""A norm outlier is refused, its weights are kept as evidence, and it is no longer in the round."""

from pathlib import Path

import numpy as np

from zk0.aggregation.verify import verify_update
from zk0.federation.protocol.quarantine import quarantine_norm_outliers
from zk0.federation.protocol.replies import CollectedUpdates
from zk0.federation.protocol.spool import Spool
from zk0.records import ClientMetrics, Update
from zk0.weights.writer import save_weights

METRICS = ClientMetrics(
    policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
)


def collected(folder: Path, deltas: dict[str, float]) -> CollectedUpdates:
    """Each client's weights in a spool; the delta from global weights of ones has the given norm."""
    save_weights(folder / "global.safetensors", {"w": np.ones(4, np.float32)})
    updates, norms = [], {}
    for client, delta in deltas.items():
        path = folder / "updates" / f"{client}.safetensors"
        digest, size = save_weights(path, {"w": np.array([1, 1, 1, 1 + delta], np.float32)})
        path.with_suffix(".json").write_text("{}")
        updates.append(
            Update(
                client=client,
                round=1,
                global_digest="g" * 64,
                path=str(path),
                digest=digest,
                bytes=size,
                examples=1,
                dataset="d",
                metrics=METRICS,
            )
        )
        whole = folder / "global.safetensors"
        norms[client] = verify_update(
            updates[-1], round=1, global_digest="g" * 64, global_path=whole, already_received=()
        )
    return CollectedUpdates(updates=tuple(updates), refusals=(), all_refusals=(), delta_norms=norms)


def test_an_outlier_is_refused_and_its_weights_are_kept(tmp_path):
    found = collected(tmp_path, {"a": 1.0, "b": -2.0, "c": 3.0, "wild": 500.0})
    spool = tmp_path / "updates"
    left = quarantine_norm_outliers(found, spool, tmp_path / "global.safetensors", 100.0)
    assert [u.client for u in left.updates] == ["a", "b", "c"]
    assert left.delta_norms == {"a": 1.0, "b": 2.0, "c": 3.0}
    (refusal,) = left.refusals
    assert left.all_refusals == left.refusals == Spool(spool, tmp_path / "global.safetensors").refusals()
    assert refusal.client == "wild"
    assert "delta norm 500 is 200 times the median 2.5 of this round; expected at most 100 times" in refusal.reason
    assert (spool / "wild.refused").is_file()
    assert sorted(p.name for p in spool.glob("wild*")) == ["wild.refused"]


def test_no_update_is_refused_within_the_factor_or_without_one(tmp_path):
    found = collected(tmp_path, {"a": 1.0, "b": -2.0, "c": 3.0, "wild": 500.0})
    for factor in (200.0, 0.0):
        assert quarantine_norm_outliers(found, tmp_path / "updates", tmp_path / "global.safetensors", factor) == found


def test_of_two_updates_neither_is_an_outlier(tmp_path):
    found = collected(tmp_path, {"a": 1.0, "wild": 500.0})
    assert quarantine_norm_outliers(found, tmp_path / "updates", tmp_path / "global.safetensors", 1.5) == found
