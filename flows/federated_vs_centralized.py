"""The flow of the benchmark against baselines: federated training against local-only and centralized training."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.session_loading import load_session_to_run
from tasks.baseline_benchmark import (
    BenchmarkRequest,
    train_baseline,
    train_federated,
    write_benchmark_results,
    write_request,
)
from zk0.errors import SettingsError
from zk0.settings.session import Session
from zk0.stats.baseline_comparison import CENTRALIZED, CENTRALIZED_CLIENT


@flow(name="zk0-benchmark", flow_run_name="{folder}", persist_result=False)
def federated_vs_centralized(
    config: str = "deployments/sessions/lifts.toml",
    overrides: dict[str, Any] | None = None,
    seeds: tuple[int, ...] = (42, 43, 44),
    folder: str = "outputs/federated_vs_centralized",
    larger_batches: bool = False,
) -> str:
    """Train a session federated, each of its clients alone, and one model on all data, once for every seed.

    For one seed, all models start from the same weights, take equal optimizer steps and samples, and are evaluated on
    the same episodes and attempts. Results are written after every seed.

    Args:
        config: the session file.
        overrides: settings by dotted name that replace those of the file, such as {"rounds": 5}.
        seeds: training seeds; each gives one federated model and one set of baselines, and 95 % intervals go over them.
        folder: the folder of all models and results; run again with the same settings to continue, or with more seeds
            to add them.
        larger_batches: the centralized model makes as many steps as one client, with batches as large as those of all
            clients together; unset: as many steps as all clients together, with batches as large as a client's.

    Returns the path of report.html; results.json is in the same folder.

    Raises:
        SettingsError: the session cannot be trained in one place, or the folder holds another benchmark.
        FederationError: a session fails.
    """
    session = load_session_to_run(Path(config), overrides)
    check_comparable(session, seeds, config)
    request = BenchmarkRequest(folder=str(Path(folder).resolve()), session=session, larger_batches=larger_batches)
    write_request(request)
    page = ""
    for number, seed in enumerate(seeds, start=1):
        source = train_federated(seed, request)
        for name in (*session.client_names(), CENTRALIZED):
            train_baseline(name, seed, request, source)
        page = write_benchmark_results(seeds[:number], request)
    return page


def check_comparable(session: Session, seeds: tuple[int, ...], config: str) -> None:
    """Check that the models of a benchmark can be compared.

    Raises:
        SettingsError: a seed is missing or double, data is not on this machine, losses would be normalized differently,
            or a client has the name of the centralized model.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise SettingsError(f"seeds {list(seeds)}: expected one or more, each once")
    if session.federation.engine == "deployment":
        raise SettingsError(f"{config}: nodes keep their data; expected an engine with all data on this machine")
    if session.normalization == "client":
        raise SettingsError(
            f'{config}: losses under each client\'s own statistics differ; set normalization = "auto" or "pooled"'
        )
    if reserved := sorted({CENTRALIZED, CENTRALIZED_CLIENT} & set(session.client_names())):
        raise SettingsError(f"{config}: a client is called {reserved[0]}; choose another name")
