"""The server's own optimizer: the mean of the clients is a direction, not yet the new weights.

State is kept a value for each weight, in slots named by what they hold; a slot that was never written is zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from zk0.session import AggregationSettings

Values = NDArray[np.float64]
USUAL_RATES = {"fedavgm": 1.0, "fedadam": 0.1, "fedyogi": 0.01, "scaffold": 1.0}
"""As in Flower; scaffold's as in its paper."""


@dataclass(frozen=True)
class ServerStep:
    """From the mean (n,), the old weights (n,) and the state, a slot each (n,), to new weights and new state."""

    slots: tuple[str, ...]
    take: Callable[[Values, Values, list[Values]], tuple[Values, list[Values]]]


def server_step(settings: AggregationSettings, round_number: int) -> ServerStep | None:
    """The step that a strategy takes in one round; None where the new weights are the mean itself."""
    steps = {"fedavgm": _fedavgm, "fedadam": _fedadam, "fedyogi": _fedyogi, "scaffold": _scaffold}
    build = steps.get(settings.strategy)
    return build(settings, round_number) if build else None


def _fedavgm(settings: AggregationSettings, round_number: int) -> ServerStep:
    """Momentum on the server (arXiv 1909.06335, section 4.3): m = beta m + (w - mean), w = w - lr m."""
    rate, momentum = _rate(settings), settings.momentum

    def take(mean: Values, old: Values, state: list[Values]) -> tuple[Values, list[Values]]:
        moment = momentum * state[0] + (old - mean)
        return old - rate * moment, [moment]

    return ServerStep(("momentum",), take)


def _fedadam(settings: AggregationSettings, round_number: int) -> ServerStep:
    """FedAdam (arXiv 2003.00295, algorithm 2) with Adam's correction of the first rounds, as Flower has it."""
    one, two = settings.beta_1, settings.beta_2
    rate = _rate(settings) * sqrt(1 - two ** (round_number + 1)) / (1 - one ** (round_number + 1))

    def take(mean: Values, old: Values, state: list[Values]) -> tuple[Values, list[Values]]:
        delta = mean - old
        first = one * state[0] + (1 - one) * delta
        second = two * state[1] + (1 - two) * delta**2
        return old + rate * first / (np.sqrt(second) + settings.tau), [first, second]

    return ServerStep(("first_moment", "second_moment"), take)


def _fedyogi(settings: AggregationSettings, round_number: int) -> ServerStep:
    """FedYogi (arXiv 2003.00295, algorithm 2): the second moment grows and falls by the same amounts."""
    one, two, rate = settings.beta_1, settings.beta_2, _rate(settings)

    def take(mean: Values, old: Values, state: list[Values]) -> tuple[Values, list[Values]]:
        delta = mean - old
        first = one * state[0] + (1 - one) * delta
        second = state[1] - (1 - two) * delta**2 * np.sign(state[1] - delta**2)
        return old + rate * first / (np.sqrt(second) + settings.tau), [first, second]

    return ServerStep(("first_moment", "second_moment"), take)


def _scaffold(settings: AggregationSettings, round_number: int) -> ServerStep:
    """SCAFFOLD's weights (arXiv 1910.06378, algorithm 1, line 17): w = w + lr (mean - w)."""
    rate = _rate(settings)

    def take(mean: Values, old: Values, state: list[Values]) -> tuple[Values, list[Values]]:
        return mean if rate == 1 else old + rate * (mean - old), []

    return ServerStep((), take)


def _rate(settings: AggregationSettings) -> float:
    return settings.server_lr or USUAL_RATES[settings.strategy]
