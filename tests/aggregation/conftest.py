"""Small updates of a round on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zk0.records import ClientMetrics, Update
from zk0.weights.writer import save_weights

METRICS = ClientMetrics(
    policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Update]:
    """A function that writes one client's weights and returns the record of the update."""

    def save(client: str, weights: dict[str, np.ndarray], examples: int = 1, round_number: int = 1) -> Update:
        path = tmp_path / f"round-{round_number}" / f"{client}.safetensors"
        digest, size = save_weights(path, weights)
        return Update(
            client=client,
            round=round_number,
            global_digest="g" * 64,
            path=str(path),
            digest=digest,
            bytes=size,
            examples=examples,
            dataset="d",
            metrics=METRICS,
        )

    return save
