"""The plans that the server sends to clients: one frozen record for each kind of request.

A plan holds everything that a client needs to answer: the session's terms, the policy recipe, the digest of the global
weights that come with it, and the settings of the work. A client keeps no state of a session besides.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from zk0.records import DIGEST_CHARACTERS, MAX_INDEX, MAX_TEXT, PolicyRecipe, Record, Statistics, WireFormat
from zk0.settings.dataset_settings import ContractSettings, DataSettings, SafeName, SimulatorSettings
from zk0.settings.session import Session
from zk0.settings.training_settings import LocalTrainingSettings, SchedulerSettings

MAX_BATCH = 10**10
"""Frames of a batch that a plan may name; a node's own limit is far lower."""


class SessionTerms(Record):
    """What a client needs to check its dataset when it joins a session; every plan repeats it."""

    session: str = Field(max_length=MAX_TEXT)
    """Name of the session's folder; unique for every run of a session."""
    seed: int = Field(ge=0, lt=2**63)
    contract: ContractSettings
    data: DataSettings
    simulator: SimulatorSettings


class ClientPlan(Record):
    """Base of all plans: one client, one model."""

    terms: SessionTerms
    round: int = Field(ge=0, le=MAX_INDEX)
    client: SafeName
    recipe: PolicyRecipe
    global_digest: str = Field(max_length=128, pattern=DIGEST_CHARACTERS)
    """Digest of the global weights."""
    statistics: Statistics | None
    """Statistics of the federation; None: the client normalizes with its own."""
    training: LocalTrainingSettings
    wire: WireFormat = WireFormat()

    @model_validator(mode="after")
    def _recipe_trains_the_scope(self) -> Self:
        if self.recipe.trained != self.training.trained_patterns():
            raise ValueError(f"the recipe trains {self.recipe.trained}, training.scope is {self.training.scope}")
        if self.recipe.personal != self.training.personal:
            raise ValueError(f"personal are {self.recipe.personal} in the recipe, {self.training.personal} in training")
        return self


class FeaturePlan(ClientPlan):
    """Request to compute the features of the client's frames before its first round, whose time limit they exceed."""

    every_frames: int | None = Field(ge=1, le=MAX_INDEX)
    """Frames 0, N, 2N, ... of each held-out episode have features; None: clients do not evaluate."""


class VideoPlan(Record):
    """How the videos of held-out episodes are rendered."""

    episodes: int = Field(ge=1, le=MAX_INDEX)
    """Episodes of each dataset, the first ones."""
    camera_height: int = Field(ge=1, le=MAX_INDEX)
    """Height of a camera image in the video, in pixels."""
    timestamp: datetime
    """Part of the videos' names."""


class EvaluationPlan(ClientPlan):
    """Request to evaluate a model on the client's held-out episodes."""

    times: int = Field(ge=1, le=MAX_INDEX)
    """Flow-matching times per frame."""
    batch_size: int = Field(ge=1, le=MAX_BATCH)
    """Frames."""
    every_frames: int = Field(ge=1, le=MAX_INDEX)
    """Frames 0, N, 2N, ... of each episode are evaluated."""
    video: VideoPlan | None = None
    """None: no video is rendered."""
    save_personal: bool = False
    """The client saves its own policy: the global weights with its own parameters."""


class JoiningReportPlan(EvaluationPlan):
    """Request to measure what joining brought the client: it trains alone, and compares the result with the model."""

    lrs: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, max_length=100_000)
    """The client's learning rate in each round of the session, in order."""
    scheduler: SchedulerSettings


class SecureRules(Record):
    """How the updates of a round are summed in secure aggregation; the same for all its clients."""

    bits: Literal[16, 32]
    """Of a word."""
    neighbors: int | None = Field(ge=2, le=10_000, multiple_of=2)
    """Clients with which a client shares masks; all others where there are no more, and where it is None."""
    limit: float = Field(gt=0, le=1e6)
    """The largest change of a weight; a client cuts a larger one to it."""
    clip_norm: float | None = Field(default=None, gt=0, le=1e15)
    """L2 norm to which a client clips its delta; None: it does not."""
    equal_weights: bool = False
    """Every client counts the same, whatever its number of training frames."""
    max_share_factor: float = Field(ge=0)
    """Limit of a client's frames, as a multiple of the lower median of all; 0: none."""


class RoundPlan(ClientPlan):
    """Request to train in one round."""

    round: int = Field(ge=1, le=MAX_INDEX)
    lr: float = Field(gt=0)
    """The client's learning rate in this round, as the schedule decided it."""
    mu: float = Field(ge=0)
    """FedProx mu of this round, as the schedule decided it."""
    scheduler: SchedulerSettings
    use_control_variates: bool = False
    """SCAFFOLD: correct the gradients by control variates, and send their change."""
    secure: SecureRules | None = None
    """The client sends its update in secure aggregation only; None: it sends the update itself."""
    buffered: bool = False
    """The server goes on without waiting for this client: its ledger may have more lines when the request arrives."""

    def digest(self) -> str:
        """SHA-256 of the plan. A client that already answered a plan with this digest need not train again."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def session_terms(session: Session, name: str) -> SessionTerms:
    """The terms of a session; `name` is the name of its folder."""
    return SessionTerms(
        session=name,
        seed=session.seed,
        contract=session.contract,
        data=session.data,
        simulator=session.simulator,
    )
