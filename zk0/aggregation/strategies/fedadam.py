"""FedAdam: Adam on the server."""

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.strategy import Strategy


class FedAdam(Strategy):
    """Adam on the server (arXiv 2003.00295, algorithm 2), with Adam's bias correction, as Flower implements it.

    The defaults of learning rate, beta_1, beta_2 and tau are Flower's.
    """

    name = "fedadam"
    is_mean_of_all = True
    default_server_lr = 0.1
    state_slots = ("first_moment", "second_moment")

    def server_step(
        self, combined: Float64Array, old: NDArray[Any], state: list[Float64Array], round_number: int
    ) -> tuple[Float64Array, list[Float64Array]]:
        """Step by lr m / (sqrt(v) + tau), where the mean's delta takes the place of a gradient."""
        beta_1, beta_2 = self.settings.beta_1, self.settings.beta_2
        lr = self.server_lr * sqrt(1 - beta_2 ** (round_number + 1)) / (1 - beta_1 ** (round_number + 1))
        delta = combined - old
        first = beta_1 * state[0] + (1 - beta_1) * delta
        second = beta_2 * state[1] + (1 - beta_2) * delta**2
        return old + lr * first / (np.sqrt(second) + self.settings.tau), [first, second]
