"""Panels about clients and schedule by round. A round without a value is a gap in its series."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isnan, nan

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from zk0.records import Contribution, RoundDecision, RoundRecord, Update
from zk0.report.charts.axes import (
    DASHES,
    MARKERS,
    add_footnote,
    draw_client_series,
    draw_series,
    finish_axes,
    shorten_label,
    style_axes,
)
from zk0.report.charts.footnotes import evaluation_settings_note
from zk0.report.contributions import Influence, client_influences
from zk0.report.metrics import sorted_by_round
from zk0.report.palette import LIGHT_THEME, Theme

_COLUMNS = 3


@dataclass(frozen=True)
class _Panel:
    """One set of axes: title, y label, and the series of the clients or of the schedule, by name."""

    title: str
    quantity: str
    series: Mapping[str, Sequence[float]]
    is_schedule: bool = False

    def has_values(self) -> bool:
        return any(not isnan(value) for values in self.series.values() for value in values)

    def constant(self) -> float | None:
        """The value of a schedule that is the same in every round; None if it is not."""
        values = [value for value in self.series.get(_SCHEDULE, ()) if not isnan(value)]
        return values[0] if values and max(values) - min(values) <= 1e-3 * max(values) else None


_SCHEDULE = "all clients"


def federated_metrics_figure(history: Sequence[RoundRecord], theme: Theme = LIGHT_THEME) -> Figure:
    """Up to nine panels: training and held-out losses, learning rate; update norms, cosines, mu; shares of the
    aggregated delta, leave-one-out shifts, proximal losses. A panel without values, or with a schedule that is
    constant, is left out; the footnote has the constants."""
    rows = sorted_by_round(history)
    rounds = [r.round for r in rows]
    clients = sorted({u.client for r in rows for u in r.updates} | {c.client for r in rows for c in r.contributions})
    panels = _panels(rows, clients)
    constants = [p for p in panels if p.is_schedule and p.constant() is not None and not _boosts(p, rows, clients)]
    shown = [p for p in panels if p.has_values() and p not in constants] or panels[:1]
    lines = ceil(len(shown) / _COLUMNS)
    figure = Figure(
        figsize=(13, 0.5 + 3.55 * lines), facecolor=theme.card, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08)
    )
    grid = list(figure.subplots(lines, _COLUMNS, squeeze=False).flat)
    for axes in grid[len(shown) :]:
        axes.remove()
    for number, (axes, panel) in enumerate(zip(grid, shown, strict=False)):
        style_axes(axes, panel.title, panel.quantity, theme)
        if panel.is_schedule:
            _draw_schedule(axes, rounds, panel.series[_SCHEDULE], theme)
            _draw_boosts(axes, _boosts(panel, rows, clients), clients, theme)
        else:
            draw_client_series(axes, rounds, panel.series, theme)
        if panel.title == _NORMS:
            global_norms = [nan if r.param_update_norm is None else r.param_update_norm for r in rows]
            axes.plot(rounds, global_norms, color=theme.text, linewidth=2.2, linestyle=DASHES[2], label="global model")
        finish_axes(axes, rounds, theme, legend=panel.is_schedule)
        if number + _COLUMNS < len(shown):
            axes.set_xlabel("")
    named = next((axes for axes, panel in zip(grid, shown, strict=False) if panel.title == _NORMS), grid[0])
    legend = named.get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper center", ncols=6, frameon=False, fontsize=9.5, labelcolor=theme.text)
    fixed = "".join(f" {p.title} {p.constant():.3g} in every round." for p in constants)
    note = f"{evaluation_settings_note(rows)}{fixed} Gaps are rounds in which nothing was measured."
    add_footnote(figure, note, theme)
    return figure


_NORMS = "Norm of the updates"
_LEARNING_RATE = "Learning rate"


def _panels(rows: Sequence[RoundRecord], clients: Sequence[str]) -> list[_Panel]:
    influences = [client_influences(r) for r in rows]

    def panel(title: str, quantity: str, of_client: Callable[[str], list[float]]) -> _Panel:
        return _Panel(title, quantity, {client: of_client(client) for client in clients})

    def schedule(title: str, quantity: str, of_decision: Callable[[RoundDecision], float]) -> _Panel:
        return _Panel(title, quantity, {_SCHEDULE: _of_decisions(rows, of_decision)}, is_schedule=True)

    loss, shift = "policy loss (dimensionless)", "‖delta − delta without it‖ / ‖delta‖"
    return [
        panel("Training loss of the clients", loss, lambda c: _of_updates(rows, c, _loss)),
        panel("Held-out loss of the clients", loss, lambda c: _held_out(rows, c)),
        schedule(_LEARNING_RATE, "learning rate of the round", lambda d: d.lr),
        panel(_NORMS, "‖w − w_global‖ (L2)", lambda c: _of_contributions(rows, c, _norm)),
        panel("Cosine to the mean update", "cosine (−1 to 1)", lambda c: _of_contributions(rows, c, _cosine)),
        schedule("Proximal term", "FedProx mu", lambda d: d.mu),
        panel("Share of the aggregated delta", "share (all sum to 1)", lambda c: _of_influences(influences, c, _share)),
        panel("Leave-one-out shift", shift, lambda c: _of_influences(influences, c, _shift)),
        panel("Proximal loss of the clients", "mu/2 ‖w − w_global‖²", lambda c: _of_updates(rows, c, _proximal)),
    ]


def _boosts(panel: _Panel, rows: Sequence[RoundRecord], clients: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Round and learning rate of each client with a factor of its own; empty in other panels."""
    if panel.title != _LEARNING_RATE:
        return {}
    found = {
        client: [
            (r.round, r.decision.lr * r.decision.client_lr_factors[client])
            for r in rows
            if r.decision and client in r.decision.client_lr_factors
        ]
        for client in clients
    }
    return {client: points for client, points in found.items() if points}


def _loss(update: Update) -> float:
    return update.metrics.policy_loss


def _proximal(update: Update) -> float:
    return update.metrics.fedprox_loss


def _norm(contribution: Contribution) -> float:
    return contribution.update_norm


def _cosine(contribution: Contribution) -> float | None:
    return contribution.cosine_to_mean


def _share(influence: Influence) -> float:
    return influence.share


def _shift(influence: Influence) -> float | None:
    return influence.leave_one_out_shift


def _value[T](item: T | None, number: Callable[[T], float | None]) -> float:
    """The number of an item; NaN where one of them is missing."""
    value = None if item is None else number(item)
    return nan if value is None else value


def _of_decisions(rows: Sequence[RoundRecord], number: Callable[[RoundDecision], float | None]) -> list[float]:
    return [_value(r.decision, number) for r in rows]


def _of_updates(rows: Sequence[RoundRecord], client: str, number: Callable[[Update], float | None]) -> list[float]:
    return [_value(next((u for u in r.updates if u.client == client), None), number) for r in rows]


def _of_contributions(
    rows: Sequence[RoundRecord], client: str, number: Callable[[Contribution], float | None]
) -> list[float]:
    return [_value(next((c for c in r.contributions if c.client == client), None), number) for r in rows]


def _of_influences(
    influences: Sequence[Mapping[str, Influence]], client: str, number: Callable[[Influence], float | None]
) -> list[float]:
    return [_value(of_round.get(client), number) for of_round in influences]


def _held_out(rows: Sequence[RoundRecord], client: str) -> list[float]:
    scores = [r.client_evaluation.scores if r.client_evaluation else () for r in rows]
    return [
        _value(next((s for s in of_round if s.client == client), None), lambda s: s.score.policy_loss)
        for of_round in scores
    ]


def _draw_schedule(axes: Axes, rounds: Sequence[int], values: Sequence[float], theme: Theme) -> None:
    draw_series(axes, rounds, values, (0, "all clients"), theme)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)


def _draw_boosts(
    axes: Axes, boosts: Mapping[str, Sequence[tuple[int, float]]], clients: Sequence[str], theme: Theme
) -> None:
    """Draw the learning rates of clients with a factor of their own."""
    for client, points in boosts.items():
        index = clients.index(client)
        color, marker = theme.series[index % len(theme.series)], MARKERS[index % len(MARKERS)]
        label = f"{shorten_label(client, 24)} only"
        axes.plot(*zip(*points, strict=True), color=color, linestyle="", marker=marker, label=label)
