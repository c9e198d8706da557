"""A plan of round 1 for client a, and a valid answer to it, which tests change."""

from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from zk0.federation.protocol.sent_log import WEIGHTS_PATH
from zk0.federation.protocol.spool import Spool
from zk0.records import ClientMetrics, PolicyRecipe, Update, WireFormat
from zk0.settings.dataset_settings import ContractSettings, DataSettings, SimulatorSettings
from zk0.settings.plans import RoundPlan, SessionTerms
from zk0.settings.training_settings import LocalTrainingSettings, SchedulerSettings
from zk0.weights.compression import compress_weights
from zk0.weights.writer import save_weights


class PlannedUpdate:
    """A spool, a plan, and a valid update."""

    def __init__(self, folder: Path, wire: WireFormat) -> None:
        weights = {"w": np.zeros((2, 3), np.float32)}
        self.folder = folder
        self.digest, _ = save_weights(folder / "global.safetensors", weights)
        found, size = save_weights(folder / "sent.safetensors", weights)
        self.plan = RoundPlan(
            terms=SessionTerms(
                session="s", seed=1, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
            ),
            round=1,
            client="a",
            recipe=PolicyRecipe(path="tiny", cameras=("x",), joints=6, seed=1),
            global_digest=self.digest,
            statistics=None,
            lr=1.0,
            mu=0.0,
            training=LocalTrainingSettings(),
            scheduler=SchedulerSettings(),
            wire=wire,
        )
        compress_weights(folder / "sent.safetensors", folder / "sent.packed")
        self.update = Update(
            client="a",
            round=1,
            global_digest=self.digest,
            path="sent.safetensors",
            digest=found,
            bytes=size,
            examples=1,
            dataset="d",
            metrics=ClientMetrics.model_validate(dict.fromkeys(ClientMetrics.model_fields, 1)),
            wire=wire,
        )

    def receive(self, update: str, weights: bytes) -> Any:
        (self.folder / "received").write_bytes(weights)
        answer = RecordDict({"answer": ConfigRecord({"update": update, WEIGHTS_PATH: str(self.folder / "received")})})
        return Spool(self.folder / "spool", self.folder / "global.safetensors").receive(answer, self.plan, ())
