"""The interface of aggregation strategies. Each one is a class in a module of `zk0.aggregation.strategies`."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.weighted_mean import weighted_mean_of_updates
from zk0.settings.aggregation_settings import AggregationSettings


class Strategy:
    """How the server makes new global weights from the updates of one round.

    The defaults are those of FedAvg; a subclass overrides what differs. In each round the aggregation calls
    `update_weights` once; then, for each block of n values, `combine` and `server_step`.

    Args:
        settings: the section `[aggregation]` of a session.
    """

    name: ClassVar[str]
    """The value of `aggregation.strategy` that selects this strategy."""
    is_mean_of_all: ClassVar[bool] = False
    """True if the server derives nothing from updates but the mean of all of them: noise on that mean then suffices for
    differential privacy, and updates may begin from older weights (`federation.mode = "buffered"`)."""
    uses_control_variates: ClassVar[bool] = False
    """Whether control variates (SCAFFOLD) travel with the weights, which must then be dense and float32."""
    default_server_lr: ClassVar[float] = 1.0
    """The learning rate of the server step where `aggregation.server_lr` is not set."""
    state_slots: ClassVar[tuple[str, ...]] = ()
    """Names of the server optimizer's moments: one file each, one value per weight, zero before the first round."""

    def __init__(self, settings: AggregationSettings) -> None:
        self.settings = settings
        self.server_lr = settings.server_lr or self.default_server_lr

    def min_updates(self) -> int:
        """Return the smallest number of updates that the strategy is defined for with these settings."""
        return 1

    def update_weights(self, examples: Float64Array, squared_distances: Callable[[], Float64Array]) -> Float64Array:
        """Return how much each update counts in `combine`; 0 leaves it out.

        Args:
            examples: (updates,), training frames of each client.
            squared_distances: computes ||update_i - update_j||^2 (updates, updates); reads every update once.
        """
        return examples

    def combine(self, values: NDArray[Any], weights: Float64Array) -> Float64Array:
        """Return one value for each column.

        Args:
            values: (updates, n), weights of the trained models, in any floating dtype.
            weights: (updates,), as `update_weights` returned them.
        """
        return weighted_mean_of_updates(values, weights)

    def server_step(
        self, combined: Float64Array, old: NDArray[Any], state: list[Float64Array], round_number: int
    ) -> tuple[Float64Array, list[Float64Array]]:
        """Return the new global weights (n,) and the new state; without an optimizer, the combined values.

        Args:
            combined: (n,), the result of `combine`.
            old: (n,), the global weights that the updates were trained from, in their own dtype.
            state: one array (n,) for each of `state_slots`.
            round_number: from 1.
        """
        return combined, []


def equal_weights(examples: Float64Array) -> Float64Array:
    """Return weight 1 for each update, for strategies in which every client counts the same."""
    return np.ones(len(examples))
