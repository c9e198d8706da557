"""The flow of a comparison of settings: one session for each combination of values and each training seed."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.federated_vs_centralized import check_comparable
from flows.session_loading import load_session_to_run
from tasks.variant_benchmark import VariantRequest, train_variant, write_variant_request, write_variant_results
from zk0.stats.variant_comparison import variants_of


@flow(name="zk0-benchmark", flow_run_name="{folder}", persist_result=False)
def settings_comparison(
    vary: dict[str, list[Any]],
    config: str = "deployments/sessions/lifts.toml",
    overrides: dict[str, Any] | None = None,
    seeds: tuple[int, ...] = (42, 43, 44, 45, 46),
    folder: str = "outputs/settings_comparison",
) -> str:
    """Run a session with every combination of some settings' values, once for every seed, and compare the results.

    Results are written after every seed: results.json, summary.csv, values.csv, values.parquet, table.md, table.tex,
    chart.svg and chart.pdf.

    Args:
        vary: values by dotted name, such as {"aggregation.strategy": ["fedavg", "scaffold"]}; the combination of the
            first values is what the others are compared with.
        config: the session file.
        overrides: settings by dotted name that replace those of the file in every session.
        seeds: training seeds; 95 % intervals go over them and over episodes or attempts.
        folder: of all sessions and results; run again to continue, or with more seeds or values to add them.

    Returns the path of table.md.

    Raises:
        SettingsError: a combination is impossible, or the folder holds sessions with other settings.
        FederationError: a session fails.
    """
    variants = variants_of(vary)
    sessions = [load_session_to_run(Path(config), {**(overrides or {}), **one.overrides}) for one in variants]
    for session in sessions:
        check_comparable(session, seeds, config)
    request = VariantRequest(folder=str(Path(folder).resolve()), variants=variants, sessions=tuple(sessions))
    write_variant_request(request)
    table = ""
    for count, seed in enumerate(seeds, start=1):
        for number, variant in enumerate(variants):
            train_variant(variant.name, number, seed, request)
        table = write_variant_results(seeds[:count], request)
    return table
