"""Recordings of a real SO-101 that folds cloth, split to four clients, against numbers from their files."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from zk0.records import Moments, RoundRecord
from zk0.settings.loading import parse_session
from zk0.settings.plans import session_terms
from zk0.settings.session import Session

pytestmark = pytest.mark.real_data
CLIENTS, HELD_OUT, EVERY = 4, 5, 150


@pytest.fixture(scope="module")
def root(real_data: Path) -> Path:
    folder = real_data / "so101-cloth-right"
    if not folder.is_dir():
        pytest.skip(f"no recording of a real SO-101 at {folder}")
    return folder


@pytest.fixture(scope="module")
def session(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    evaluation_set = {"dataset": f"local:{root}", "last_episodes": HELD_OUT}
    values = {
        "name": "cloth",
        "partition": {"dataset": f"local:{root}", "clients": CLIENTS},
        "contract": {"cameras": ["wrist"]},
        "data": {"holdout_episodes": HELD_OUT},
        "policy": {"path": "tiny"},
        "training": {"local_steps": 3, "batch_size": 8, "features": "off"},
        "federation": {"workers": 0, "round_timeout_seconds": 280},
        "evaluation": {"times": 2, "every_frames": EVERY, "datasets": [evaluation_set]},
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
    }  # fmt: skip
    return parse_session(values, "test")


@pytest.fixture(scope="module")
def rows(root: Path) -> dict[str, np.ndarray]:
    """All rows, sorted by index, straight from parquet."""
    table = pq.read_table(root / "data").sort_by("index")
    columns = {name: np.array(table[name].to_pylist()) for name in ("observation.state", "action")}
    return columns | {name: table[name].to_numpy() for name in ("episode_index", "frame_index", "timestamp")}


def moments(values: np.ndarray) -> dict[str, Any]:
    exact = values.astype(np.float64)
    found = {"mean": exact.mean(0), "std": exact.std(0), "min": exact.min(0), "max": exact.max(0)}
    return {"count": len(exact)} | found


def assert_moments(found: Moments, values: np.ndarray) -> None:
    wanted = moments(values)
    assert found.count == wanted.pop("count")
    for name, numbers in wanted.items():
        assert getattr(found, name) == pytest.approx(numbers, rel=1e-9, abs=1e-9), name


@pytest.fixture(scope="module")
def members(session: Session, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    from zk0.client.client import Client

    folder, terms = tmp_path_factory.mktemp("clients"), session_terms(session, "cloth")
    return [Client(c, terms, folder / c.name, Path(session.cache_dir)).join() for c in session.local_clients()]


def test_split_and_statistics(members: list[Any], session: Session, rows: dict[str, np.ndarray]) -> None:
    from zk0.data.split import assert_disjoint
    from zk0.data.statistics import pool_moments
    from zk0.evaluation.evaluation_sets import prepare_evaluation_set

    for number, member in enumerate(members):
        mine = tuple(e for e in range(20) if e % CLIENTS == number)
        assert member.split.train == mine
        assert member.split.held_out == (20, 21, 22, 23, 24)
        here = np.isin(rows["episode_index"], mine)
        assert member.train_frames == here.sum()
        assert_moments(member.statistics.state, rows["observation.state"][here])
        assert_moments(member.statistics.action, rows["action"][here])
    pooled, trained = pool_moments([m.statistics for m in members]), rows["episode_index"] < 20
    assert_moments(pooled.state, rows["observation.state"][trained])
    assert_moments(pooled.action, rows["action"][trained])
    evaluation_set = prepare_evaluation_set(session.evaluation_sets()[0], session)
    places = {m.client: m.train_digests for m in members} | {"evaluation": evaluation_set.digests}
    assert_disjoint(places)
    assert len({d for digests in places.values() for d in digests}) == 25


def frames_of(root: Path, seconds: list[float]) -> list[np.ndarray]:
    """Pictures at some moments of the one video file, (3, H, W) in 0..1, decoded with av alone."""
    import av

    (video,) = (root / "videos/observation.images.wrist").glob("*/*.mp4")
    found: dict[int, np.ndarray] = {}
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            for i, moment in enumerate(seconds):
                if abs(frame.time - moment) < 1e-3:
                    found[i] = frame.to_ndarray(format="rgb24").transpose(2, 0, 1).astype(np.float32) / 255
    return [found[i] for i in range(len(seconds))]


def test_loss_and_action_error(
    members: list[Any], session: Session, root: Path, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    import torch

    from zk0.data.statistics import pool_moments
    from zk0.evaluation.evaluation_sets import prepare_evaluation_set
    from zk0.evaluation.global_model import build_start_policy, evaluate_weights
    from zk0.evaluation.session_setup import SessionSetup
    from zk0.policy.build import build_policy

    statistics = pool_moments([m.statistics for m in members])
    recipe, digest, _ = build_start_policy(session, tmp_path / "start.safetensors")
    sets = (prepare_evaluation_set(session.evaluation_sets()[0], session),)
    setup = SessionSetup(recipe=recipe, members=tuple(members), sets=sets, statistics=statistics)
    found = evaluate_weights(session, setup, (tmp_path / "start.safetensors", digest), 0)

    policy = build_policy(recipe, Path(session.cache_dir))
    trained, held = rows["episode_index"] < 20, np.flatnonzero(rows["episode_index"] >= 20)
    chosen = [int(i) for i in held if rows["frame_index"][i] % EVERY == 0]
    episodes = pq.read_table(root / "meta/episodes").to_pylist()
    starts = {e["episode_index"]: e["videos/observation.images.wrist/from_timestamp"] for e in episodes}
    seconds = [starts[rows["episode_index"][i]] + rows["timestamp"][i] for i in chosen]
    state, action = (moments(rows[key][trained]) for key in ("observation.state", "action"))
    ids = policy.model.vlm_with_expert.processor.tokenizer("Fold the cloth with the right arm.\n")["input_ids"]
    losses, errors, counts = [], [], []
    for i, picture in zip(chosen, frames_of(root, seconds), strict=True):
        episode, frame = int(rows["episode_index"][i]), int(rows["frame_index"][i])
        last = int(np.flatnonzero(rows["episode_index"] == episode)[-1])
        steps = np.minimum(np.arange(i, i + 10), last)
        real = np.arange(i, i + 10) <= last
        philox = np.random.Philox(key=[session.seed, (episode << 32) | frame])
        noise = np.random.Generator(philox).standard_normal((3, 10, 32), dtype=np.float32)
        normal = (rows["observation.state"][i] - state["mean"]) / state["std"]
        batch = {
            "observation.state": torch.tensor(normal).float()[None],
            "action": torch.tensor((rows["action"][steps] - action["mean"]) / action["std"]).float()[None],
            "action_is_pad": torch.tensor(~real)[None],
            "observation.images.wrist": torch.from_numpy(picture)[None],
            "observation.language.tokens": torch.tensor([ids]),
            "observation.language.attention_mask": torch.ones(1, len(ids), dtype=torch.bool),
        }  # fmt: skip
        for draw, quantile in enumerate((0.25, 0.75)):
            time = torch.tensor([quantile ** (2 / 3) * 0.999 + 0.001])
            with torch.no_grad():
                loss, _ = policy.forward(dict(batch), noise=torch.from_numpy(noise[draw : draw + 1]), time=time)
            losses.append(loss.item() * real.sum())
        inputs = {k: v for k, v in batch.items() if k not in ("action", "action_is_pad")}
        predicted = policy.predict_action_chunk(inputs, noise=torch.from_numpy(noise[2:]))[0].numpy()
        degrees = predicted * action["std"] + action["mean"]
        errors.append(np.abs(degrees - rows["action"][steps])[real])
        counts.append(real.sum())
    assert found.sets[0].frames == len(chosen) > HELD_OUT
    assert len(found.sets[0].episodes) == HELD_OUT
    assert found.policy_loss == pytest.approx(sum(losses) / (2 * sum(counts)), rel=1e-5)
    assert found.action_error_degrees == pytest.approx(np.concatenate(errors).mean(), rel=1e-5)


def test_a_federated_round_ends_in_the_ledger(
    session: Session, drive: type, tmp_path: Path, rows: dict[str, np.ndarray]
) -> None:
    from zk0.audit.ledger import Ledger
    from zk0.evaluation.evaluation_sets import prepare_evaluation_set
    from zk0.evaluation.global_model import evaluate_weights
    from zk0.evaluation.session_setup import SessionSetup
    from zk0.federation.open import open_federation

    driven = drive(session, tmp_path, "cloth")
    with open_federation(session, "cloth", tmp_path) as federation:
        driven.begin(federation)
        sets = (prepare_evaluation_set(session.evaluation_sets()[0], session),)
        decision = driven.decision()
        collected = driven.train(federation)
        mean = driven.average(collected.updates)
    setup = SessionSetup(recipe=driven.recipe, members=driven.members, sets=sets, statistics=driven.statistics)
    records = []
    for checkpoint in driven.history:
        evaluation = evaluate_weights(session, setup, (Path(checkpoint.path), checkpoint.digest), checkpoint.round)
        now = datetime.now(UTC).isoformat()
        records.append(
            RoundRecord(
                round=checkpoint.round, checkpoint=checkpoint, evaluation=evaluation, seconds=1.0, finished_at=now
            )
        )
    records[1] = records[1].model_copy(
        update={"decision": decision, "updates": collected.updates, "contributions": mean.contributions}
        | {"param_update_norm": mean.param_update_norm}
    )
    ledger = Ledger(tmp_path / "records.jsonl")
    for record in records:
        ledger.append(record)
    read = ledger.read()
    assert [r.round for r in read] == [0, 1]
    assert [u.client for u in read[1].updates] == [f"client_{i}" for i in range(CLIENTS)]
    shares = [int(np.isin(rows["episode_index"], range(i, 20, CLIENTS)).sum()) for i in range(CLIENTS)]
    assert [u.examples for u in read[1].updates] == shares
    assert [c.weight for c in read[1].contributions] == pytest.approx([s / sum(shares) for s in shares])
    assert read[1].param_update_norm > 0
    assert read[0].evaluation.policy_loss != read[1].evaluation.policy_loss
