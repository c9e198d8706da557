"""Nine panels about clients and schedule by round. A round without a value is a gap in its series."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan, nan

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


def federated_metrics_figure(history: Sequence[RoundRecord], theme: Theme = LIGHT_THEME) -> Figure:
    """Nine panels: training and held-out losses, learning rate; update norms, cosines, mu; shares of the aggregated
    delta, leave-one-out shifts, proximal losses."""
    rows = sorted_by_round(history)
    rounds = [r.round for r in rows]
    figure = Figure(figsize=(13, 11.2), facecolor=theme.card, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08))
    (losses, held_out, lr), (norms, cosines, mu), (shares, shifts, proximal) = figure.subplots(3, 3)
    clients = sorted({u.client for r in rows for u in r.updates} | {c.client for r in rows for c in r.contributions})
    influences = [client_influences(r) for r in rows]
    by_client: list[tuple[Axes, str, str, Callable[[str], list[float]]]] = [
        (losses, "Training loss of the clients", "policy loss (dimensionless)", lambda c: _of_updates(rows, c, _loss)),
        (held_out, "Held-out loss of the clients", "policy loss (dimensionless)", lambda c: _held_out(rows, c)),
        (norms, "Norm of the updates", "‖w − w_global‖ (L2)", lambda c: _of_contributions(rows, c, _norm)),
        (cosines, "Cosine to the mean update", "cosine (−1 to 1)", lambda c: _of_contributions(rows, c, _cosine)),
        (
            shares,
            "Share of the aggregated delta",
            "share (all sum to 1)",
            lambda c: _of_influences(influences, c, _share),
        ),
        (
            shifts,
            "Leave-one-out shift",
            "‖delta − delta without it‖ / ‖delta‖",
            lambda c: _of_influences(influences, c, _shift),
        ),
        (proximal, "Proximal loss of the clients", "mu/2 ‖w − w_global‖²", lambda c: _of_updates(rows, c, _proximal)),
    ]
    for axes, title, quantity, of_client in by_client:
        style_axes(axes, title, quantity, theme)
        draw_client_series(axes, rounds, {client: of_client(client) for client in clients}, theme)
    global_norms = [nan if r.param_update_norm is None else r.param_update_norm for r in rows]
    norms.plot(rounds, global_norms, color=theme.text, linewidth=2.2, linestyle=DASHES[2], label="global model")
    style_axes(lr, "Learning rate", "learning rate of the round", theme)
    _draw_schedule(lr, rounds, _of_decisions(rows, lambda d: d.lr), theme)
    _draw_boosts(lr, rows, clients, theme)
    style_axes(mu, "Proximal term", "FedProx mu", theme)
    _draw_schedule(mu, rounds, _of_decisions(rows, lambda d: d.mu), theme)
    for axes in figure.axes:
        finish_axes(axes, rounds, theme, legend=axes is lr)
    for axes in (losses, held_out, lr, norms, cosines, mu):
        axes.set_xlabel("")
    legend = norms.get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper center", ncols=6, frameon=False, fontsize=9.5, labelcolor=theme.text)
    add_footnote(figure, evaluation_settings_note(rows) + " Gaps are rounds in which nothing was measured.", theme)
    return figure


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
    decided = [v for v in values if not isnan(v)]
    if decided and max(decided) - min(decided) <= 1e-3 * max(decided):
        axes.set_ylim(0, (max(decided) or 1.0) * 1.6)


def _draw_boosts(axes: Axes, rows: Sequence[RoundRecord], clients: Sequence[str], theme: Theme) -> None:
    """Draw the learning rates of clients with a factor of their own."""
    for index, client in enumerate(clients):
        points = [
            (r.round, r.decision.lr * r.decision.client_lr_factors[client])
            for r in rows
            if r.decision and client in r.decision.client_lr_factors
        ]
        if points:
            color, marker = theme.series[index % len(theme.series)], MARKERS[index % len(MARKERS)]
            label = f"{shorten_label(client, 24)} only"
            axes.plot(*zip(*points, strict=True), color=color, linestyle="", marker=marker, label=label)
