"""Footnote of the charts: the settings of the evaluations."""

from collections.abc import Sequence

from zk0.records import RoundRecord


def evaluation_settings_note(history: Sequence[RoundRecord]) -> str:
    """Normalization, seed and draws per frame of the evaluations, and a warning if values are not comparable."""
    evaluations = [r.evaluation for r in history if r.evaluation]
    if not evaluations:
        return "No round was evaluated."
    settings = sorted(
        {f"normalization {e.normalization}, seed {e.seed}, {e.times} times per frame" for e in evaluations}
    )
    text = "Evaluated with " + "; ".join(settings) + "."
    if len(settings) > 1:
        text += " Points with different settings are not comparable."
    if any(e.normalization == "client" for e in evaluations):
        text += " Statistics differ: losses are not comparable between clients."
    return text
