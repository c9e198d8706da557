"""Comparison of two folders: the settings that differ, and the paired differences between their models."""

import tomllib
from pathlib import Path
from typing import Any

from zk0.errors import EvaluationError
from zk0.records import Record
from zk0.settings.setting_differences import setting_differences
from zk0.stats.model_comparison import (
    MetricName,
    ModelDifference,
    ModelResults,
    compare_available,
    compare_models,
    read_model_results,
)
from zk0.storage.session_folder import SessionFolder


class FolderComparison(Record):
    """One folder of a session or of `zk0 rollout` compared with another one."""

    before: str
    """Name of the first folder."""
    after: str
    title: str
    settings: tuple[tuple[str, str, str], ...]
    """Name and both values of each setting that differs; empty where a folder is of `zk0 rollout`."""
    rows: tuple[ModelDifference, ...]
    left_out: tuple[str, ...]
    """Why a metric is not compared; only where the metrics were not chosen."""


def compare_folders(first: Path, second: Path, metrics: tuple[MetricName, ...] | None = None) -> FolderComparison:
    """Compare the last evaluated models of two folders.

    Args:
        first: what the other one is compared with.
        second: the other one.
        metrics: that both must have; None: those for which both have comparable results.

    Raises:
        EvaluationError: a folder has no results, or there is nothing to compare.
        LedgerError: a ledger contradicts itself.
    """
    before, after = read_model_results(first), read_model_results(second)
    rows, left_out = (compare_models(before, after, metrics), ()) if metrics else compare_available(before, after)
    one, other = _read_settings(first), _read_settings(second)
    return FolderComparison(
        before=before.label,
        after=after.label,
        title=f"{_title(after)} against {_title(before)}",
        settings=setting_differences(one, other) if one and other else (),
        rows=rows,
        left_out=left_out,
    )


def _title(results: ModelResults) -> str:
    return results.label if results.round is None else f"{results.label}, round {results.round}"


def _read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings as the session's file holds them, also those of another version; None without a file."""
    file = SessionFolder(folder).session_toml
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError) as e:
        raise EvaluationError(f"{file}: cannot be read ({e}); expected the settings of a session") from e
