"""The tables of a session have the numbers of its ledger and of its attempts."""

from pathlib import Path

import pytest
from four_arms_session import CLIENTS, DATASETS, round_record

import zk0
from zk0.audit.ledger import Ledger
from zk0.errors import SettingsError
from zk0.records import ClientScore, Rollout
from zk0.settings.loading import parse_session
from zk0.stats.session_results import SessionResults, read_session
from zk0.storage.session_folder import SessionFolder

ATTEMPTS = [
    Rollout(
        **{"round": number, "checkpoint": "c", "conditions_digest": "c", "task": "place", "client": "place"},
        **{"seed": seed, "success": (number, seed) == (2, 9001), "steps": 30, "duration_seconds": 3.0, "fps": 10.0},
        smoothness=None,
    )
    for number in (0, 2)
    for seed in (9000, 9001)
]


@pytest.fixture
def results(tmp_path: Path) -> SessionResults:
    clients = [{"name": n, "dataset": d} for n, d in zip(CLIENTS, DATASETS, strict=True)]
    evaluation = {"datasets": [{"dataset": "lab/so101-unseen"}]}
    folder = SessionFolder(tmp_path / "2026-11-29_four-arms")
    folder.create(parse_session({"name": "four-arms", "clients": clients, "evaluation": evaluation}, "test"))
    for number in range(3):
        Ledger(folder.ledger).append(round_record(number))
    folder.checkpoint(1).mkdir(parents=True)
    for attempt in ATTEMPTS:
        file = folder.rollouts(attempt.round) / f"rollout_20261129_00000{attempt.seed - 9000}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(attempt.model_dump_json(), encoding="utf-8")
    return zk0.read(folder.path)


def _client_scores(number: int) -> tuple[ClientScore, ...]:
    evaluation = round_record(number).client_evaluation
    return evaluation.scores if evaluation else ()


def test_rounds(results: SessionResults) -> None:
    table = results.rounds()
    assert list(table["round"]) == [0, 1, 2]
    losses = [r.evaluation.policy_loss if r.evaluation else None for r in map(round_record, range(3))]
    assert table.policy_loss.astype(object).where(table.policy_loss.notna(), None).to_list() == losses
    assert list(table.lr.isna()) == [True, False, False], "round 0 trains nothing"
    assert table.lr[1] == round_record(1).decision.lr


def test_scores_pair_by_episode(results: SessionResults) -> None:
    table, record = results.scores(), round_record(1)
    unseen = table[table.client.isna()]
    paired = unseen[unseen["round"] < 2].pivot(index=["dataset", "episode"], columns="round", values="policy_loss")
    assert not paired.isna().any(axis=None)
    (first, *_), recorded = record.evaluation.sets, table[table["round"] == 1]
    assert list(recorded[recorded.dataset == first.dataset].policy_loss) == [e.policy_loss for e in first.episodes]
    held_out = {(r, one.client) for r in range(3) for one in _client_scores(r)}
    own = table[table.client.notna()]
    assert held_out
    assert set(zip(own["round"], own.client, strict=True)) == held_out


def test_updates(results: SessionResults) -> None:
    table = results.updates()
    expected = [c.client for number in (1, 2) for c in round_record(number).contributions]
    assert list(table.client) == expected
    assert set(table["round"]) == {1, 2}
    assert (table.examples > 0).all()


def test_attempts(results: SessionResults) -> None:
    rates = results.attempts().groupby("round").success.mean()
    assert dict(rates) == {0: 0.0, 2: 0.5}


def test_the_folder_of_a_policy(results: SessionResults) -> None:
    assert results.policy_folder() == results.policy_folder(1) == results.folder.checkpoint(1)
    with pytest.raises(SettingsError, match=r"expected the policy of round 2, found policies of rounds: 1"):
        results.policy_folder(2)


def test_a_session_without_rounds_has_empty_tables(results: SessionResults) -> None:
    results.folder.ledger.unlink()
    empty = read_session(results.folder.path)
    assert [len(t) for t in (empty.rounds(), empty.scores(), empty.updates())] == [0, 0, 0]
    assert list(empty.rounds().columns) == list(results.rounds().columns)


def test_another_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"expected the folder of a session, found no session\.toml in it"):
        read_session(tmp_path)


def test_only_what_exists_is_exported() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'reed'"):
        zk0.reed  # noqa: B018
