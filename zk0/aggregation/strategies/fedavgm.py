"""FedAvgM: FedAvg with momentum on the server."""

from typing import Any

from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.strategy import Strategy


class FedAvgM(Strategy):
    """Momentum on the server (arXiv 1909.06335, section 4.3): m = beta m + (w - mean), w = w - lr m.

    The default learning rate is Flower's; the default momentum is the paper's, because Flower's 0 would be FedAvg.
    """

    name = "fedavgm"
    is_mean_of_all = True
    default_server_lr = 1.0
    state_slots = ("momentum",)

    def server_step(
        self, combined: Float64Array, old: NDArray[Any], state: list[Float64Array], round_number: int
    ) -> tuple[Float64Array, list[Float64Array]]:
        """Step along the momentum."""
        momentum = self.settings.momentum * state[0] + (old - combined)
        return old - self.server_lr * momentum, [momentum]
