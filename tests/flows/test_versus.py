"""Federated against its baselines as a user runs it: what is refused, and a whole small comparison, recomputed."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from flows.federated_vs_centralised import check_comparable
from tasks import contrasting
from zk0.errors import SettingsError
from zk0.ledger import Ledger
from zk0.session import Session, parse_session

JUDGE = {"evaluation": {"datasets": [{"dataset": "sim:lift-green"}]}}
CLIENTS = {"clients": [{"name": n, "dataset": f"sim:lift-{n}"} for n in ("red", "white")]}


def session(**changes: Any) -> Session:
    return parse_session(JUDGE | CLIENTS | changes, "test")


@pytest.mark.parametrize(
    ("made", "seeds", "said"),
    [
        (session(), (1, 1), r"seeds \[1, 1\]: expected one or more, each once"),
        (session(), (), "expected one or more"),
        (session(normalization="client"), (1,), "each client's own statistics differ"),
        (session(clients=[], federation={"engine": "deployment"}), (1,), "nodes keep their data"),
        (
            session(clients=[{"name": n, "dataset": "sim:lift-red"} for n in ("a", "centralised")]),
            (1,),
            "a client is called centralised",
        ),
    ],
)
def test_what_cannot_be_compared(made: Session, seeds: tuple[int, ...], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_comparable(made, seeds, "x.toml")


def test_a_folder_holds_one_comparison(tmp_path: Path) -> None:
    asked = contrasting.Asked(folder=str(tmp_path), session=session(), larger_batches=False)
    contrasting.begin(asked)
    contrasting.begin(asked)
    with pytest.raises(SettingsError, match="holds a comparison with other settings"):
        contrasting.begin(asked.model_copy(update={"larger_batches": True}))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_comparison(stack: Any) -> None:
    """Two training seeds; the second run adds the second seed and trains nothing of the first again."""
    folder = stack.home / "versus"
    judges = [{"dataset": "sim:lift-yellow", "last_episodes": 2}]
    overrides = stack.overrides("unused", **{"rollout.seeds": [9000, 9001], "evaluation.datasets": judges})
    overrides |= {"training.local_steps": 6, "simulator.episodes": 3}

    def compared(seeds: list[int]) -> dict[str, Any]:
        asked = {"overrides": overrides, "seeds": seeds, "folder": str(folder)}
        asked["config"] = "deployments/sessions/smoke.toml"
        options = [o for k, v in asked.items() for o in ("--param", f"{k}={json.dumps(v)}")]
        done = stack.prefect("deployment", "run", "zk0-benchmark/federated-vs-centralised", "--watch", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((folder / "results.json").read_text())

    compared([1])
    ledgers = {path: path.read_bytes() for path in (folder / "seed-1").rglob("ledger.jsonl")}
    found = compared([1, 2])
    assert len(ledgers) == 4, "federated, two alone, centralised"
    assert all(path.read_bytes() == before for path, before in ledgers.items())
    assert (folder / "report.html").is_file()
    assert {w["steps"] for w in found["work"] if w["model"] in ("federated", "centralised")} == {2 * 2 * 6}
    assert {w["steps"] for w in found["work"] if w["model"].endswith(" alone")} == {2 * 6}

    def losses(path: Path, seed: int) -> list[float]:
        (ledger,) = (folder / f"seed-{seed}").glob(f"{path}/ledger.jsonl")
        return [e.policy_loss for s in Ledger(ledger).read()[-1].evaluation.sets for e in s.episodes]

    federated, centralised = ([losses(where, seed) for seed in (1, 2)] for where in ("federated/*", "centralised"))
    (row,) = (
        r for r in found["contrasts"]
        if (r["metric"], r["against"], r["where"]) == ("policy_loss", "centralised", "unseen")
    )  # fmt: skip
    assert (row["seeds"], row["units"]) == (2, 2)
    d = [[f - c for f, c in zip(*rows, strict=True)] for rows in zip(federated, centralised, strict=True)]
    mean = sum(map(sum, d)) / 4
    assert row["change"] == pytest.approx(mean)
    seeds, episodes = [sum(r) / 2 - mean for r in d], [sum(c) / 2 - mean for c in zip(*d, strict=True)]
    squares = [2 * sum(x * x for x in side) for side in (seeds, episodes)]
    rest = sum((d[i][j] - seeds[i] - episodes[j] - mean) ** 2 for i in (0, 1) for j in (0, 1))
    total = max(sum(squares) - rest, *squares)
    dof = max(total**2 / sum(s * s for s in (*squares, rest)), 1)
    half = stats.t.ppf(0.975, dof) * (total / 4) ** 0.5
    assert row["interval"] == pytest.approx([mean - half, mean + half])
