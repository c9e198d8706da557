"""Is federated training worth it? Each client alone, federated, and all data in one place, judged alike."""

from pathlib import Path
from typing import Any

from prefect import flow

from tasks import contrasting
from zk0.contrast import CENTRALISED
from zk0.errors import SettingsError
from zk0.session import Session, load_session


@flow(name="zk0-benchmark", flow_run_name="{folder}", persist_result=False)
def federated_vs_centralised(
    config: str = "deployments/sessions/lifts.toml",
    overrides: dict[str, Any] | None = None,
    seeds: tuple[int, ...] = (42, 43, 44),
    folder: str = "outputs/federated_vs_centralised",
    larger_batches: bool = False,
) -> str:
    """Train one session federated, each of its clients alone, and one model on all data, with every seed.

    Within a seed all models begin with the same weights, take equal optimizer steps and samples, and are judged on the
    same episodes and attempts. Results are written after every seed.

    Args:
        config: the session file.
        overrides: settings by dotted name that replace those of the file, such as {"rounds": 5}.
        seeds: of training, one federation and one set of baselines each; intervals go over them.
        folder: where it all lives; run again with the same settings to go on, or with more seeds to add them.
        larger_batches: the centralised model makes as many steps as one client, with batches as large as all clients'
            together; else as many steps as all clients together, with batches like a client's.

    Returns the path of report.html; results.json lies beside it.

    Raises:
        SettingsError: the session cannot be trained in one place, or the folder holds another comparison.
        FederationError: a session failed.
    """
    session = load_session(Path(config), overrides).at(Path.cwd())
    check_comparable(session, seeds, config)
    asked = contrasting.Asked(folder=str(Path(folder).resolve()), session=session, larger_batches=larger_batches)
    contrasting.begin(asked)
    page = ""
    for number, seed in enumerate(seeds, start=1):
        source = contrasting.federate(seed, asked)
        for name in (*session.client_names(), CENTRALISED):
            contrasting.train_baseline(name, seed, asked, source)
        page = contrasting.show(seeds[:number], asked)
    return page


def check_comparable(session: Session, seeds: tuple[int, ...], config: str) -> None:
    """Raises SettingsError where nothing could be compared."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise SettingsError(f"seeds {list(seeds)}: expected one or more, each once")
    if session.federation.engine == "deployment":
        raise SettingsError(f"{config}: nodes keep their data; expected an engine with all data on this machine")
    if session.normalization != "pooled":
        raise SettingsError(
            f'{config}: losses under each client\'s own statistics differ; set normalization = "pooled"'
        )
    if CENTRALISED in session.client_names():
        raise SettingsError(f"{config}: a client is called {CENTRALISED}; choose another name")
