"""Metrics beside a saved policy: all numbers, without local paths."""

import json

from zk0.records import Refusal, RoundRecord
from zk0.storage.redaction import public_metrics, without_folders


def test_numbers_stay_and_local_paths_are_removed(history: list[RoundRecord]) -> None:
    reason = "the worker ended with -9; see /home/someone/outputs/x/server/worker-0.log"
    record = history[3].model_copy(update={"refusals": (Refusal(client="place", reason=reason),)})
    text = public_metrics(record)
    assert "/home" not in text
    assert "someone" not in text
    found = json.loads(text)
    assert found["refusals"] == [{"client": "place", "reason": "the worker ended with -9; see worker-0.log"}]
    expected = json.loads(record.model_dump_json())
    assert {k: v for k, v in found.items() if k not in ("updates", "refusals", "client_evaluation")} == {
        k: v for k, v in expected.items() if k not in ("updates", "refusals", "client_evaluation")
    }
    first = json.loads(public_metrics(history[1]))["updates"]
    assert [u["dataset"] for u in first] == ["hf:lab/so101-cloth", "lab/so101-lift", "local:place", "sim:stack"]
    assert [u["path"] for u in first] == [u.path for u in history[1].updates]


def test_text_that_only_resembles_a_path_stays() -> None:
    for text in ("1/2 of it", "lab/so101", "round-001/updates/a.safetensors", "http://x.org/y", "2026-01-01T00:00:00Z"):
        assert without_folders(text) == text
    assert without_folders("~/data/arm is gone") == "arm is gone"
    assert without_folders("local:/home/me/arm: no such folder") == "local:arm: no such folder"
    assert without_folders("open(/tmp/a b)") == "open(a b)"
