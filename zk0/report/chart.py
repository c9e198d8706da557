"""Charts of a session. A number that was not measured is a gap in its line, never a zero."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from zk0.interval import Z_95
from zk0.public import public_name
from zk0.records import Contribution, Decision, Evaluation, RoundRecord, SetScore, Update
from zk0.report.contribution import Influence, influences
from zk0.report.lines import DASHES, MARKERS, dress, finish, foot, known, line, many, name_points, png, short
from zk0.report.metrics import error_estimate, ordered
from zk0.report.palette import LIGHT, Theme
from zk0.report.write import write_bytes


def policy_loss_chart(history: Sequence[RoundRecord], path: Path) -> bytes:
    """Write the server's policy loss per round, with its 95 % band and one line per set; the PNG is also returned.

    Raises:
        ReportError: the file cannot be written.
    """
    return _write(policy_loss_figure(history), path)


def federated_metrics_chart(history: Sequence[RoundRecord], path: Path) -> bytes:
    """Write nine panels about clients and schedule per round; the PNG is also returned.

    Raises:
        ReportError: the file cannot be written.
    """
    return _write(federated_metrics_figure(history), path)


def action_error_chart(history: Sequence[RoundRecord], units: str, path: Path) -> bytes:
    """Write the action error per round, with its 95 % band and one line per set; the PNG is also returned.

    Raises:
        ReportError: the file cannot be written.
    """
    return _write(action_error_round_figure(history, units), path)


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
    _band(axes, rounds, (lower, upper), "95 % interval (±1.96 SE)", theme)
    _mean_and_sets(axes, rows, loss, lambda s: s.policy_loss, theme)
    name_points(axes, rounds, loss, theme)
    finish(axes, rounds, theme)
    foot(figure, measured_under(rows) + " Round 0 is the start, before any training.", theme)
    return figure


def action_error_round_figure(history: Sequence[RoundRecord], units: str, theme: Theme = LIGHT) -> Figure:
    """Action error on unseen data over rounds: bold mean with its 95 % band over episodes, one thin line per set."""
    rows = ordered(history)
    rounds = [r.round for r in rows]
    figure = Figure(figsize=(10, 4.8), facecolor=theme.card, layout="constrained")
    axes = figure.add_subplot()
    dress(axes, "Action error on unseen data", f"mean absolute error ({units}; gripper 0–100)", theme)
    error = _judged(rows, lambda e: e.action_error_degrees)
    ends = [error_estimate(r.evaluation).interval if r.evaluation else None for r in rows]
    lower, upper = ([nan if e is None else e[side] for e in ends] for side in (0, 1))
    _band(axes, rounds, (lower, upper), "95 % interval (Student's t over episodes)", theme)
    _mean_and_sets(axes, rows, error, lambda s: s.action_error_degrees, theme)
    name_points(axes, rounds, error, theme)
    finish(axes, rounds, theme)
    foot(figure, measured_under(rows) + " The whole predicted chunk, open loop.", theme)
    return figure


def federated_metrics_figure(history: Sequence[RoundRecord], theme: Theme = LIGHT) -> Figure:
    """Nine panels over rounds: client and held-out losses, lr; update norm, cosine, mu; shares of the step,
    leave-one-out, proximal loss."""
    rows = ordered(history)
    rounds = [r.round for r in rows]
    figure = Figure(figsize=(13, 11.2), facecolor=theme.card, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08))
    (losses, held_out, lr), (norms, cosines, mu), (shares, without, proximal) = figure.subplots(3, 3)
    clients = sorted({u.client for r in rows for u in r.updates} | {c.client for r in rows for c in r.contributions})
    pulls = [influences(r) for r in rows]
    by_client: list[tuple[Axes, str, str, Callable[[str], list[float]]]] = [
        (losses, "Training loss of the clients", "policy loss (dimensionless)", lambda c: _trained(rows, c, _loss)),
        (held_out, "Held-out loss of the clients", "policy loss (dimensionless)", lambda c: _held_out(rows, c)),
        (norms, "Size of the updates", "‖w − w_global‖ (L2)", lambda c: _shared(rows, c, lambda s: s.update_norm)),
        (cosines, "Agreement with the mean update", "cosine (−1 to 1)", lambda c: _shared(rows, c, _cosine)),
        (shares, "Part of the global step", "share (all sum to 1)", lambda c: _pulled(pulls, c, lambda i: i.share)),
        (without, "Leaving a client out", "‖step − step without it‖ / ‖step‖", lambda c: _pulled(pulls, c, _shift)),
        (proximal, "Proximal loss of the clients", "mu/2 ‖w − w_global‖²", lambda c: _trained(rows, c, _proximal)),
    ]
    for axes, title, quantity, of_client in by_client:
        dress(axes, title, quantity, theme)
        many(axes, rounds, {client: of_client(client) for client in clients}, theme)
    together = [nan if r.param_update_norm is None else r.param_update_norm for r in rows]
    norms.plot(rounds, together, color=theme.ink, linewidth=2.2, linestyle=DASHES[2], label="global model")
    dress(lr, "Learning rate", "learning rate of the round", theme)
    _schedule(lr, rounds, _decided(rows, lambda d: d.lr), theme)
    _boosted(lr, rows, clients, theme)
    dress(mu, "Proximal term", "FedProx mu", theme)
    _schedule(mu, rounds, _decided(rows, lambda d: d.mu), theme)
    for axes in figure.axes:
        finish(axes, rounds, theme, legend=axes is lr)
    for axes in (losses, held_out, lr, norms, cosines, mu):
        axes.set_xlabel("")
    named = norms.get_legend_handles_labels()
    figure.legend(*named, loc="outside upper center", ncols=6, frameon=False, fontsize=9.5, labelcolor=theme.ink)
    foot(figure, measured_under(rows) + " Gaps are rounds in which nothing was measured.", theme)
    return figure


def _loss(update: Update) -> float:
    return update.metrics.policy_loss


def _proximal(update: Update) -> float:
    return update.metrics.fedprox_loss


def _cosine(share: Contribution) -> float | None:
    return share.cosine_to_mean


def _shift(pull: Influence) -> float | None:
    return pull.shift_without


def _pulled(
    pulls: Sequence[Mapping[str, Influence]], client: str, number: Callable[[Influence], float | None]
) -> list[float]:
    return [_number(of_round.get(client), number) for of_round in pulls]


def _write(figure: Figure, path: Path) -> bytes:
    content = png(figure)
    write_bytes(path, content)
    return content


def _band(
    axes: Axes, rounds: Sequence[int], ends: tuple[Sequence[float], Sequence[float]], label: str, theme: Theme
) -> None:
    if known(rounds, ends[0]):
        colour = theme.series[0]
        axes.fill_between(rounds, *ends, color=colour, alpha=0.18, linewidth=0, label=label)
        axes.vlines(rounds, *ends, color=colour, alpha=0.55, linewidth=1.4)


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


def _held_out(rows: Sequence[RoundRecord], client: str) -> list[float]:
    scores = [r.client_evaluation.scores if r.client_evaluation else () for r in rows]
    return [
        _number(next((s for s in said if s.client == client), None), lambda s: s.score.policy_loss) for said in scores
    ]


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
