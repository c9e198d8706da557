"""Settings of the aggregation: strategy, clipping, differential privacy, quarantine of norm outliers."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from zk0.records import Record


class AggregationSettings(Record):
    """How the server computes new global weights from the clients' updates.

    `zk0.aggregation.check_strategy` checks that the strategy exists, and what it needs of the other settings.
    """

    strategy: str = Field(
        default="fedavg",
        description="aggregation strategy (docs/aggregation.md); FedProx is fedavg with training.proximal_mu above 0",
    )
    server_lr: float | None = Field(
        default=None,
        gt=0,
        description="learning rate of the server step, in strategies that take one; unset: the strategy's default "
        "(docs/aggregation.md)",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="server momentum of fedavgm")
    beta_1: float = Field(default=0.9, ge=0, lt=1, description="beta_1 of fedadam and fedyogi")
    beta_2: float = Field(default=0.99, ge=0, lt=1, description="beta_2 of fedadam and fedyogi")
    tau: float = Field(
        default=1e-3, gt=0, description="tau of fedadam and fedyogi: added to the denominator of a server step"
    )
    trim_fraction: float = Field(
        default=0.2, gt=0, lt=0.5, description="trimmed_mean: share of the values removed at either end"
    )
    malicious: int = Field(default=0, ge=0, description="krum and multi_krum: number of malicious updates to tolerate")
    selected: int | None = Field(
        default=None,
        ge=1,
        description="multi_krum: number of updates that are averaged; unset: all but malicious + 2",
    )
    weighting: Literal["examples", "equal"] = Field(
        default="examples",
        description="weight of a client in a mean: its training frames, up to max_share_factor; or the same for all",
    )
    max_share_factor: float = Field(
        default=3.0,
        ge=0,
        description="no client counts more frames than this factor times the lower median of the round's clients, in "
        "means and in pooled statistics; 0: no limit",
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="L2 norm that deltas are clipped to; unset: deltas are not clipped"
    )
    noise_multiplier: float = Field(
        default=0.0,
        ge=0,
        description="differential privacy: standard deviation of the Gaussian noise, as a multiple of clip_norm; above "
        "0 every client has the same weight",
    )
    privacy_delta: float = Field(
        default=1e-5, gt=0, lt=1, description="delta for which the report states the privacy loss epsilon"
    )
    quarantine_factor: float = Field(
        default=10.0,
        ge=0,
        description="reject an update as a norm outlier if its delta is longer than this factor times the median; 0: "
        "never",
    )

    @field_validator("quarantine_factor")
    @classmethod
    def _above_the_median(cls, factor: float) -> float:
        if 0 < factor <= 1:
            raise ValueError(f"quarantine_factor {factor:g} would reject the median; expected 0 or more than 1")
        return factor

    @field_validator("max_share_factor")
    @classmethod
    def _at_least_the_median(cls, factor: float) -> float:
        if 0 < factor < 1:
            raise ValueError(f"max_share_factor {factor:g} would limit the median; expected 0, or 1 or more")
        return factor

    @model_validator(mode="after")
    def _noise_covers_every_client(self) -> Self:
        if self.noise_multiplier == 0:
            return self
        if self.clip_norm is None:
            raise ValueError("noise_multiplier needs clip_norm: the noise is scaled by the largest possible delta")
        if self.quarantine_factor:
            raise ValueError("noise_multiplier needs quarantine_factor = 0: a rejection would reveal the other norms")
        return self
