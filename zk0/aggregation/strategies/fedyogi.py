"""FedYogi: Yogi on the server."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.strategy import Strategy


class FedYogi(Strategy):
    """Yogi on the server (arXiv 2003.00295, algorithm 2): additive changes of the second moment.

    The defaults of learning rate, beta_1, beta_2 and tau are Flower's.
    """

    name = "fedyogi"
    is_mean_of_all = True
    default_server_lr = 0.01
    state_slots = ("first_moment", "second_moment")

    def server_step(
        self, combined: Float64Array, old: NDArray[Any], state: list[Float64Array], round_number: int
    ) -> tuple[Float64Array, list[Float64Array]]:
        """Step by lr m / (sqrt(v) + tau), where the mean's delta takes the place of a gradient."""
        beta_1, beta_2 = self.settings.beta_1, self.settings.beta_2
        delta = combined - old
        first = beta_1 * state[0] + (1 - beta_1) * delta
        second = state[1] - (1 - beta_2) * delta**2 * np.sign(state[1] - delta**2)
        return old + self.server_lr * first / (np.sqrt(second) + self.settings.tau), [first, second]
