"""Shares and leave-one-out values against aggregations without a client."""

from pathlib import Path

import numpy as np
import pytest

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.records import ClientMetrics, RoundRecord, Update
from zk0.report.contributions import client_influences
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.weights.digests import load_weights
from zk0.weights.writer import save_weights

SHAPES = {"a": (40, 30), "b": (17,)}
EXAMPLES = {"one": 300, "two": 100, "three": 50}
METRICS = ClientMetrics(
    policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
)


@pytest.fixture
def updates(tmp_path: Path) -> list[Update]:
    rng = np.random.default_rng(0)
    start = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    digest, _ = save_weights(tmp_path / "global.safetensors", start)
    shared = {n: rng.normal(size=s) for n, s in SHAPES.items()}
    found = []
    for index, (client, examples) in enumerate(EXAMPLES.items()):
        direction = (1.0, 0.6, -0.8)[index]
        moved = {
            n: (w + 0.1 * (direction * shared[n] + rng.normal(size=w.shape))).astype(np.float32)
            for n, w in start.items()
        }
        path = tmp_path / f"{client}.safetensors"
        own, size = save_weights(path, moved)
        found.append(
            Update(
                client=client,
                round=1,
                global_digest=digest,
                path=str(path),
                digest=own,
                bytes=size,
                examples=examples,
                dataset="x",
                metrics=METRICS,
            )
        )
    return found


def aggregated(updates: list[Update], folder: Path, **settings: object) -> RoundRecord:
    terms = AggregationTerms(settings=AggregationSettings(**settings))
    mean = aggregate(updates, folder / "global.safetensors", folder / "new.safetensors", terms)
    checkpoint = {"round": 1, "path": mean.path, "digest": mean.digest, "bytes": mean.bytes}
    return RoundRecord(
        round=1,
        checkpoint=checkpoint,
        contributions=mean.contributions,
        param_update_norm=mean.param_update_norm,
        seconds=1,
        finished_at="",
    )


def delta(folder: Path) -> np.ndarray:
    old, new = load_weights(folder / "global.safetensors"), load_weights(folder / "new.safetensors")
    return np.concatenate([(new[n].astype(float) - old[n]).ravel() for n in sorted(old)])


def test_leave_one_out_equals_an_aggregation_without_the_client(updates: list[Update], tmp_path: Path) -> None:
    found = client_influences(aggregated(updates, tmp_path))
    whole = delta(tmp_path)
    assert found.keys() == EXAMPLES.keys()
    for client, one in found.items():
        aggregated([u for u in updates if u.client != client], tmp_path)
        without = delta(tmp_path)
        assert one.leave_one_out_shift == pytest.approx(
            np.linalg.norm(whole - without) / np.linalg.norm(whole), rel=1e-4
        )


def test_shares_sum_to_one_and_opposing_clients_have_negative_shares(updates: list[Update], tmp_path: Path) -> None:
    found = {client: i.share for client, i in client_influences(aggregated(updates, tmp_path)).items()}
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert found["one"] > found["two"] > 0 > found["three"]


def test_clipped_updates_count_as_clipped(updates: list[Update], tmp_path: Path) -> None:
    record = aggregated(updates, tmp_path, clip_norm=0.5)
    assert any(c.scale < 1 for c in record.contributions)
    assert sum(i.share for i in client_influences(record).values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("strategy", ["median", "fedadam"])
def test_strategies_that_are_no_weighted_mean_have_no_shares(
    updates: list[Update], tmp_path: Path, strategy: str
) -> None:
    assert client_influences(aggregated(updates, tmp_path, strategy=strategy)) == {}


def test_the_only_client_has_the_whole_share_and_no_leave_one_out_values(updates: list[Update], tmp_path: Path) -> None:
    (found,) = client_influences(aggregated(updates[:1], tmp_path)).values()
    assert found.share == pytest.approx(1)
    assert found.leave_one_out_shift is None
    assert (
        client_influences(
            RoundRecord.model_validate(aggregated(updates, tmp_path).model_dump() | {"contributions": ()})
        )
        == {}
    )
