"""Charts of a session. A number that was not measured is a gap in its line, never a zero."""

from collections.abc import Callable, Sequence
from math import isnan, nan
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zk0.interval import Z_95
from zk0.public import public_name
from zk0.records import Contribution, Decision, Evaluation, RoundRecord, SetScore, Update
from zk0.report.lines import DASHES, MARKERS, dress, finish, foot, known, line, many, name_points, png, short
from zk0.report.metrics import ordered
from zk0.report.palette import LIGHT, Theme
from zk0.report.write import write_bytes


def policy_loss_chart(history: Sequence[RoundRecord], path: Path) -> bytes:
    """Write the server's policy loss per round, with its 95 % band and one line per set; the PNG is also returned.

    Raises:
        ReportError: the file cannot be written.
    """
    return _write(policy_loss_figure(history), path)


def federated_metrics_chart(history: Sequence[RoundRecord], path: Path) -> bytes:
    """Write six panels about clients, schedule and action error per round; the PNG is also returned.

    Raises:
        ReportError: the file cannot be written.
    """
    return _write(federated_metrics_figure(history), path)


def measured_under(history: Sequence[RoundRecord]) -> str:
    """How the losses were measured, for the foot of a chart: normalisation, seed, draws per frame."""
    judged = [r.evaluation for r in history if r.evaluation]
    if not judged:
        return "No round was evaluated."
    ways = sorted({f"normalisation {e.normalization}, seed {e.seed}, {e.times} times per frame" for e in judged})
    text = "Measured with " + "; ".join(ways) + "."
    if len(ways) > 1:
        text += " Points measured in different ways are not comparable."
    if any(e.normalization == "client" for e in judged):
        text += " Each client normalises by itself: losses are not comparable between clients."
    return text


def policy_loss_figure(history: Sequence[RoundRecord], theme: Theme = LIGHT) -> Figure:
    """Server policy loss over rounds: bold mean with a band of 1.96 SE, one thin line per evaluation set."""
    rows = ordered(history)
    rounds = [r.round for r in rows]
    figure = Figure(figsize=(10, 4.8), facecolor=theme.card, layout="constrained")
    axes = figure.add_subplot()
    dress(axes, "Policy loss on unseen data", "policy loss (dimensionless)", theme)
    loss = _judged(rows, lambda e: e.policy_loss)
    se = _judged(rows, lambda e: e.policy_loss_se)
    lower = [v - Z_95 * s for v, s in zip(loss, se, strict=True)]
    upper = [v + Z_95 * s for v, s in zip(loss, se, strict=True)]
    if known(rounds, lower):
        colour = theme.series[0]
        axes.fill_between(rounds, lower, upper, color=colour, alpha=0.18, linewidth=0, label="95 % interval (±1.96 SE)")
        axes.vlines(rounds, lower, upper, color=colour, alpha=0.55, linewidth=1.4)
    _mean_and_sets(axes, rows, loss, lambda s: s.policy_loss, theme)
    name_points(axes, rounds, loss, theme)
    finish(axes, rounds, theme)
    foot(figure, measured_under(rows) + " Round 0 is the start, before any training.", theme)
    return figure


def federated_metrics_figure(history: Sequence[RoundRecord], theme: Theme = LIGHT) -> Figure:
    """Six panels over rounds: client loss, action error, lr; update norm, cosine to the mean, mu."""
    rows = ordered(history)
    rounds = [r.round for r in rows]
    figure = Figure(figsize=(13, 7.4), facecolor=theme.card, layout="constrained")
    (losses, error, lr), (norms, cosines, mu) = figure.subplots(2, 3)
    clients = sorted({u.client for r in rows for u in r.updates} | {c.client for r in rows for c in r.contributions})

    dress(losses, "Training loss of the clients", "policy loss (dimensionless)", theme)
    many(losses, rounds, {c: _trained(rows, c, lambda u: u.metrics.policy_loss) for c in clients}, theme)
    dress(error, "Action error on unseen data", "mean absolute error (degrees)", theme)
    degrees = _judged(rows, lambda e: e.action_error_degrees)
    _mean_and_sets(error, rows, degrees, lambda s: s.action_error_degrees, theme)
    dress(norms, "Size of the updates", "‖w − w_global‖ (L2)", theme)
    many(norms, rounds, {c: _shared(rows, c, lambda s: s.update_norm) for c in clients}, theme)
    together = [nan if r.param_update_norm is None else r.param_update_norm for r in rows]
    norms.plot(rounds, together, color=theme.ink, linewidth=2.2, linestyle=DASHES[2], label="global model")
    dress(cosines, "Agreement with the mean update", "cosine (−1 to 1)", theme)
    many(cosines, rounds, {c: _shared(rows, c, lambda s: s.cosine_to_mean) for c in clients}, theme)
    dress(lr, "Learning rate", "learning rate of the round", theme)
    _schedule(lr, rounds, _decided(rows, lambda d: d.lr), theme)
    _boosted(lr, rows, clients, theme)
    dress(mu, "Proximal term", "FedProx mu", theme)
    _schedule(mu, rounds, _decided(rows, lambda d: d.mu), theme)

    for axes in (losses, error, norms, cosines, lr, mu):
        finish(axes, rounds, theme, legend=axes in (error, lr))
    handles, labels = norms.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=9.5, labelcolor=theme.ink
    )
    foot(figure, measured_under(rows) + " Gaps are rounds in which nothing was measured.", theme)
    return figure


def _write(figure: Figure, path: Path) -> bytes:
    content = png(figure)
    write_bytes(path, content)
    return content


def _number[T](thing: T | None, number: Callable[[T], float | None]) -> float:
    value = None if thing is None else number(thing)
    return nan if value is None else value


def _judged(rows: Sequence[RoundRecord], number: Callable[[Evaluation], float | None]) -> list[float]:
    return [_number(r.evaluation, number) for r in rows]


def _decided(rows: Sequence[RoundRecord], number: Callable[[Decision], float | None]) -> list[float]:
    return [_number(r.decision, number) for r in rows]


def _trained(rows: Sequence[RoundRecord], client: str, number: Callable[[Update], float | None]) -> list[float]:
    return [_number(next((u for u in r.updates if u.client == client), None), number) for r in rows]


def _shared(rows: Sequence[RoundRecord], client: str, number: Callable[[Contribution], float | None]) -> list[float]:
    return [_number(next((c for c in r.contributions if c.client == client), None), number) for r in rows]


def _scored(rows: Sequence[RoundRecord], dataset: str, number: Callable[[SetScore], float | None]) -> list[float]:
    sets = [r.evaluation.sets if r.evaluation else () for r in rows]
    return [_number(next((s for s in scores if s.dataset == dataset), None), number) for scores in sets]


def _mean_and_sets(
    axes: Axes,
    rows: Sequence[RoundRecord],
    means: Sequence[float],
    number: Callable[[SetScore], float | None],
    theme: Theme,
) -> None:
    rounds = [r.round for r in rows]
    names = list(dict.fromkeys(s.dataset for r in rows if r.evaluation for s in r.evaluation.sets))
    if len(names) > 1:
        for index, name in enumerate(names, start=1):
            line(axes, rounds, _scored(rows, name, number), (index, short(public_name(name))), theme)
    label = "mean over sets" if len(names) > 1 else short(public_name(next(iter(names), "server")))
    line(axes, rounds, means, (0, label), theme).set(linewidth=2.6, markersize=7, zorder=5)


def _schedule(axes: Axes, rounds: Sequence[int], values: Sequence[float], theme: Theme) -> None:
    line(axes, rounds, values, (0, "all clients"), theme)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    decided = [v for v in values if not isnan(v)]
    if decided and max(decided) - min(decided) <= 1e-3 * max(decided):
        axes.set_ylim(0, (max(decided) or 1.0) * 1.6)


def _boosted(axes: Axes, rows: Sequence[RoundRecord], clients: Sequence[str], theme: Theme) -> None:
    for index, client in enumerate(clients):
        points = [
            (r.round, r.decision.lr * r.decision.client_lr_factors[client])
            for r in rows
            if r.decision and client in r.decision.client_lr_factors
        ]
        if points:
            colour, marker = theme.series[index % len(theme.series)], MARKERS[index % len(MARKERS)]
            label = f"{short(client, 24)} only"
            axes.plot(*zip(*points, strict=True), color=colour, linestyle="", marker=marker, label=label)
