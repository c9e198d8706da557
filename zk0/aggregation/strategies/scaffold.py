"""SCAFFOLD: clients correct their gradients by control variates."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.strategy import Strategy, equal_weights


class Scaffold(Strategy):
    """The server's part of SCAFFOLD (arXiv 1910.06378, algorithm 1, line 17): w = w + lr (mean - w).

    Every client counts the same. `zk0.aggregation.server_control_variates` updates the server's control variate, the
    clients' part is in `zk0.training`. The default learning rate is the paper's.
    """

    name = "scaffold"
    uses_control_variates = True
    default_server_lr = 1.0

    def update_weights(self, examples: Float64Array, squared_distances: Callable[[], Float64Array]) -> Float64Array:
        """Give every update the same weight."""
        return equal_weights(examples)

    def server_step(
        self, combined: Float64Array, old: NDArray[Any], state: list[Float64Array], round_number: int
    ) -> tuple[Float64Array, list[Float64Array]]:
        """Step from the old weights towards the mean."""
        return combined if self.server_lr == 1 else old + self.server_lr * (combined - old), []
