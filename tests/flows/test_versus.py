"""The benchmark against baselines: what it refuses, and a whole small benchmark whose numbers are recomputed."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from four_arms_session import round_record
from scipy import stats

from flows.federated_vs_centralized import check_comparable
from tasks import baseline_benchmark
from tasks.variant_benchmark import VariantRequest, compare_variants, write_variant_request
from zk0.audit.ledger import Ledger
from zk0.errors import SettingsError
from zk0.settings.loading import override_session, parse_session
from zk0.settings.session import Session
from zk0.stats.variant_comparison import variants_of
from zk0.storage.session_folder import SessionFolder

UNSEEN = {"evaluation": {"datasets": [{"dataset": "sim:lift-green"}]}}
CLIENTS = {"clients": [{"name": n, "dataset": f"sim:lift-{n}"} for n in ("red", "white")]}


def named(*names: str) -> dict[str, Any]:
    return {"clients": [{"name": name, "dataset": "sim:lift-red"} for name in names]}


def session(**changes: Any) -> Session:
    return parse_session(UNSEEN | CLIENTS | changes, "test")


@pytest.mark.parametrize(
    ("made", "seeds", "message"),
    [
        (session(), (1, 1), r"seeds \[1, 1\]: expected one or more, each once"),
        (session(), (), "expected one or more"),
        (session(normalization="client"), (1,), "each client's own statistics differ"),
        (session(clients=[], federation={"engine": "deployment"}), (1,), "nodes keep their data"),
        *(
            (
                session(clients=[{"name": n, "dataset": "sim:lift-red"} for n in ("a", name)]),
                (1,),
                f"a client is called {name}",
            )
            for name in ("centralized", "centralised")
        ),
    ],
)
def test_sessions_that_cannot_be_compared(made: Session, seeds: tuple[int, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_comparable(made, seeds, "x.toml")


def test_a_folder_holds_one_benchmark(tmp_path: Path) -> None:
    request = baseline_benchmark.BenchmarkRequest(folder=str(tmp_path), session=session(), larger_batches=False)
    baseline_benchmark.write_request(request)
    baseline_benchmark.write_request(request)
    with pytest.raises(SettingsError, match="holds a benchmark with other settings"):
        baseline_benchmark.write_request(request.model_copy(update={"larger_batches": True}))


def variant_request(folder: Path, **settings: list[Any]) -> VariantRequest:
    variants = variants_of(settings or {"aggregation.strategy": ["fedavg", "median"]})
    sessions = [override_session(session(), one.overrides, "test") for one in variants]
    return VariantRequest(folder=str(folder), variants=variants, sessions=tuple(sessions))


def test_variants_are_compared_from_the_folders_of_their_sessions(tmp_path: Path) -> None:
    request = variant_request(tmp_path)
    write_variant_request(request)
    for number, seed in ((0, 1), (1, 1), (0, 2), (1, 2)):
        made = SessionFolder(request.variant_folder(number, seed) / "federated" / f"2026-11-29_{seed}_session")
        made.create(request.sessions[number])
        last = round_record(3).model_copy(update={"evaluation": round_record((3, 1)[number]).evaluation})
        for record in (*map(round_record, range(3)), last):
            Ledger(made.ledger).append(record)
    rows = [one for one in compare_variants((1, 2), request) if one.metric == "policy_loss"]
    losses = [round_record(number).evaluation.policy_loss for number in (3, 1)]
    assert [(one.variant, one.seeds) for one in rows[-2:]] == [
        ("aggregation.strategy=fedavg", 2),
        ("aggregation.strategy=median", 2),
    ]
    assert rows[-1].change == pytest.approx(losses[1] - losses[0])
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == [1, 2]
    assert (tmp_path / "table.tex").is_file()


def test_a_folder_takes_more_variants_but_no_other_settings(tmp_path: Path) -> None:
    write_variant_request(variant_request(tmp_path))
    write_variant_request(variant_request(tmp_path, **{"aggregation.strategy": ["fedavg", "median", "krum"]}))
    request = variant_request(tmp_path)
    changed = tuple(one.model_copy(update={"rounds": 3}) for one in request.sessions)
    with pytest.raises(SettingsError, match="holds sessions with other settings"):
        write_variant_request(request.model_copy(update={"sessions": changed}))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_benchmark(local_prefect: Any) -> None:
    """Two training seeds; the second run adds the second seed and trains nothing of the first again."""
    folder = local_prefect.home / "versus"
    sets = [{"dataset": "sim:lift-yellow", "last_episodes": 2}]
    overrides = local_prefect.overrides("unused", **{"rollout.seeds": [9000, 9001], "evaluation.datasets": sets})
    overrides |= {"training.local_steps": 6, "simulator.episodes": 3, "federation.workers": 0}

    def run_benchmark(seeds: list[int]) -> dict[str, Any]:
        parameters = {"overrides": overrides, "seeds": seeds, "folder": str(folder)}
        parameters["config"] = "deployments/sessions/smoke.toml"
        run = local_prefect.run_deployment("zk0-benchmark/federated-vs-centralized", parameters)
        assert local_prefect.final_state(run).is_completed(), local_prefect.state(run).message
        return json.loads((folder / "results.json").read_text())

    run_benchmark([1])
    ledgers = {path: path.read_bytes() for path in (folder / "seed-1").rglob("ledger.jsonl")}
    found = run_benchmark([1, 2])
    assert len(ledgers) == 4, "federated, two local-only, centralized"
    assert all(path.read_bytes() == before for path, before in ledgers.items())
    assert (folder / "report.html").is_file()
    budgets = found["training_budgets"]
    assert {b["optimizer_steps"] for b in budgets if b["model"] in ("federated", "centralized")} == {2 * 2 * 6}
    assert {b["optimizer_steps"] for b in budgets if b["model"].endswith("(local-only)")} == {2 * 6}

    def losses(path: Path, seed: int) -> list[float]:
        (ledger,) = (folder / f"seed-{seed}").glob(f"{path}/ledger.jsonl")
        return [e.policy_loss for s in Ledger(ledger).read()[-1].evaluation.sets for e in s.episodes]

    federated, centralized = ([losses(where, seed) for seed in (1, 2)] for where in ("federated/*", "centralized"))
    (row,) = (
        r for r in found["differences"]
        if (r["metric"], r["baseline"], r["evaluated_on"]) == ("policy_loss", "centralized", "unseen")
    )  # fmt: skip
    assert (row["seeds"], row["units"]) == (2, 2)
    d = [[f - c for f, c in zip(*rows, strict=True)] for rows in zip(federated, centralized, strict=True)]
    mean = sum(map(sum, d)) / 4
    assert row["change"] == pytest.approx(mean)
    seeds, episodes = [sum(r) / 2 - mean for r in d], [sum(c) / 2 - mean for c in zip(*d, strict=True)]
    squares = [2 * sum(x * x for x in side) for side in (seeds, episodes)]
    rest = sum((d[i][j] - seeds[i] - episodes[j] - mean) ** 2 for i in (0, 1) for j in (0, 1))
    total = max(sum(squares) - rest, *squares)
    dof = max(total**2 / sum(s * s for s in (*squares, rest)), 1)
    half = stats.t.ppf(0.975, dof) * (total / 4) ** 0.5
    assert row["interval"] == pytest.approx([mean - half, mean + half])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_settings_are_compared_by_real_sessions(forked_zk0: Any) -> None:
    """Two strategies, two seeds; the numbers are recomputed from the ledgers of the four sessions."""
    folder = forked_zk0.path / "algorithms"
    done = forked_zk0.run(
        [
            *("versus", str(forked_zk0.path / "session.toml"), "--vary", "aggregation.strategy=fedavg,scaffold"),
            *("--seeds", "1-2", "--out", str(folder), "--quiet", "--set", f"cache_dir={forked_zk0.path / 'cache'}"),
        ]
    )
    assert done.code == 0, done.output

    def losses(strategy: str, seed: int) -> list[float]:
        (ledger,) = folder.glob(f"aggregation.strategy={strategy}/seed-{seed}/federated/*/ledger.jsonl")
        return [e.policy_loss for s in Ledger(ledger).read()[-1].evaluation.sets for e in s.episodes]

    found = json.loads((folder / "results.json").read_text())["summaries"]
    first, second = (one for one in found if (one["metric"], one["evaluated_on"]) == ("policy_loss", "unseen"))
    fedavg, scaffold = ([losses(name, seed) for seed in (1, 2)] for name in ("fedavg", "scaffold"))
    assert fedavg != scaffold, "SCAFFOLD's corrections change the weights"
    means = [sum(map(sum, rows)) / (2 * len(rows[0])) for rows in (fedavg, scaffold)]
    assert (first["mean"], second["mean"]) == pytest.approx(means)
    assert (first["change"], second["change"]) == (None, pytest.approx(means[1] - means[0]))
    assert second["change_interval"][0] < second["change"] < second["change_interval"][1]
    values = pandas.read_parquet(folder / "values.parquet")
    unseen = values[(values.metric == "policy_loss") & (values.evaluated_on == "unseen")]
    assert sorted(unseen.value) == pytest.approx(sorted(x for rows in (*fedavg, *scaffold) for x in rows))
    for name in ("table.md", "table.tex", "chart.svg", "chart.pdf", "summary.csv", "values.csv"):
        assert (folder / name).stat().st_size > 100, name
    assert (folder / "table.md").read_text() in done.output
