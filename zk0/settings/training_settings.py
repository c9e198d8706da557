"""Settings of the policy, of local training on a client, and of the schedules between rounds."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from zk0.records import LoraShape, ParameterPatterns, Record

TINY = "tiny"
"""`policy.path` of a tiny, randomly initialized policy that needs no download."""
BASE = "base"
"""`policy.path` of the small policy that ships with zk0, trained on simulated tasks, its vision encoder included."""
TINY_ACT = "tiny-act"
"""`policy.path` of a tiny, randomly initialized ACT that needs no download."""
TINY_DIFFUSION = "tiny-diffusion"
"""`policy.path` of a tiny, randomly initialized Diffusion Policy that needs no download."""
BUILT_IN_POLICIES = (TINY, BASE, TINY_ACT, TINY_DIFFUSION)
"""`policy.path` of the policies that need no file of the user and no download."""


Beta = Annotated[float, Field(ge=0, lt=1)]
TrainingScope = Literal["expert", "lora", "all"]
"""Names of the sets of parameters that may be trained; any other set is a list of patterns."""


class PolicySettings(Record):
    """The policy to train."""

    path: str = Field(
        default="lerobot/smolvla_base",
        description="Hub name or folder of a LeRobot policy; without a download: `base` (a small SmolVLA, trained on "
        "simulated tasks); `tiny`, `tiny-act` and `tiny-diffusion` (randomly initialized, for tests)",
    )
    revision: str | None = Field(default=None, description="branch, tag or commit on the Hub; unset: main")


class LocalTrainingSettings(Record):
    """Local training of a client, apart from learning rate and FedProx mu, which the schedule decides for each round.

    A plan that the server sends carries these settings, and the decided numbers beside them.
    """

    model_config = ConfigDict(revalidate_instances="subclass-instances")  # a plan refuses `TrainingSettings`

    local_steps: int | None = Field(default=None, ge=1, le=10**6, description="optimizer steps per round")
    local_epochs: int | None = Field(
        default=1,
        ge=1,
        le=10_000,
        description="passes over the training frames per round; leave it out if local_steps is set",
    )
    batch_size: int = Field(default=64, ge=1, le=65_536, description="frames per optimizer step")
    accumulate_steps: int = Field(
        default=1,
        ge=0,
        le=65_536,
        description="gradient accumulation: parts that a batch is split into, to save memory; the result is the same "
        "up to rounding; 0: as few as fit into memory, found by trying 1, 2, 4, ... parts once in a process",
    )
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), description="AdamW betas")
    eps: float = Field(default=1e-8, gt=0, le=1e-2, description="AdamW epsilon")
    weight_decay: float = Field(default=1e-10, ge=0, description="AdamW weight decay")
    grad_clip_norm: float = Field(default=10.0, gt=0, description="gradients are clipped to this L2 norm")
    scope: TrainingScope | ParameterPatterns = Field(
        default="expert",
        description="parameters that are trained and sent. expert: SmolVLA's action expert and projections, and all of "
        "a policy that has no action expert; lora: LoRA factors of the action expert's matrices; all: the "
        "vision-language model, too, with features off; or a list of patterns of parameter names, such as "
        '`["model.action_*"]`',
    )
    personal: ParameterPatterns = Field(
        default=(),
        description="patterns of parameters, among those of `scope`, that each client trains for itself: they are kept "
        "on the client, never sent, and saved as a policy of its own; empty: none",
    )
    lora_rank: int = Field(default=16, ge=1, le=4096, description="LoRA rank")
    lora_alpha: int = Field(default=32, ge=1, le=10**6, description="LoRA scaling: alpha / rank")
    lora_dropout: float = Field(default=0.1, ge=0, lt=1, description="LoRA dropout")
    amp: Literal[True, False, "auto"] = Field(
        default="auto",
        description="automatic mixed precision: bf16 autocast; trained weights stay float32. auto: on GPUs with bf16 "
        "matrix products (Ampere and later), not on CPUs",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda if available, else cpu")
    gpu_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of a GPU that one client reserves: with 1 clients train one after the other, with 0.5 two "
        "at a time, with 0 all at once",
    )
    features: Literal["embeddings", "kv", "off"] = Field(
        default="embeddings",
        description="embeddings: cache the frozen vision encoder's output of each frame; kv: cache the language "
        "model's keys and values too, 12 times as large; off: decode and encode every frame each time",
    )
    feature_cache_gb: float = Field(
        default=50.0,
        gt=0,
        description="size limit of the feature cache under cache_dir, in GB (1e9 bytes); least recently used files are "
        "removed first",
    )
    deterministic: bool = Field(
        default=False,
        description="deterministic GPU kernels: bit-identical results in every run, but slower; else a GPU multiplies "
        "float32 matrices in TF32 and cuDNN chooses the kernels that are fastest",
    )
    compile: Literal[True, False, "auto"] = Field(
        default="auto",
        description="torch.compile of the action expert's layers for training steps; results are equal up to rounding. "
        "auto: on GPUs, in rounds of 200 steps or more, where a measurement before the first step finds it faster, and "
        "not with `deterministic`",
    )
    torch_threads: int = Field(default=1, ge=1, le=1024, description="CPU threads per client")
    log_every_steps: int = Field(default=20, ge=1, le=10**9, description="log every N optimizer steps")

    def lora_shape(self) -> LoraShape | None:
        """Rank and alpha of the LoRA factors that are trained; None if full matrices are trained."""
        return LoraShape(rank=self.lora_rank, alpha=self.lora_alpha) if self.scope == "lora" else None

    def trained_patterns(self) -> tuple[str, ...]:
        """Patterns of the parameters that are trained or that LoRA changes; empty: those of the scope `expert`."""
        if isinstance(self.scope, tuple):
            return self.scope
        return ("*",) if self.scope == "all" else ()

    @model_validator(mode="before")
    @classmethod
    def _scope_replaces_adapter(cls, values: Any) -> Any:
        """Read the settings of versions before `scope`."""
        if not isinstance(values, dict) or "adapter" not in values:
            return values
        scopes = {"none": "expert", "lora": "lora"}
        scope = scopes.get(values["adapter"]) if isinstance(values["adapter"], str) else None
        if scope is None or "scope" in values:
            raise ValueError(f'adapter {values["adapter"]!r} is now scope: expected scope = "expert", "lora" or "all"')
        return {name: value for name, value in values.items() if name != "adapter"} | {"scope": scope}

    @field_validator("scope", mode="before")
    @classmethod
    def _scope_is_known(cls, scope: Any) -> Any:
        if scope in ([], ()):
            raise ValueError("an empty list trains nothing; expected at least one pattern")
        if isinstance(scope, str) and scope not in (names := get_args(TrainingScope)):
            raise ValueError(f'expected {", ".join(names)} or a list of patterns such as ["{scope}"], found {scope!r}')
        return scope

    @model_validator(mode="before")
    @classmethod
    def _steps_replace_epochs(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("local_steps") is not None and "local_epochs" not in values:
            return {**values, "local_epochs": None}
        return values

    @model_validator(mode="after")
    def _exactly_one_length(self) -> Self:
        if (self.local_steps is None) == (self.local_epochs is None):
            raise ValueError("exactly one of local_steps and local_epochs must be set")
        return self

    @model_validator(mode="after")
    def _caches_frozen_layers(self) -> Self:
        if self.scope == "all" and self.features != "off":
            raise ValueError(
                f"scope all trains the vision-language model, whose outputs features {self.features} caches; "
                'set training.features = "off"'
            )
        return self

    @model_validator(mode="after")
    def _personal_parameters_are_weights(self) -> Self:
        if self.personal and self.scope == "lora":
            raise ValueError(
                'personal with scope lora: only factors are trained then; expected scope "expert", "all" or patterns'
            )
        return self

    @model_validator(mode="after")
    def _compiles_own_code(self) -> Self:
        if self.compile is True and self.features == "off":
            raise ValueError("compile true with features off: LeRobot's own forward runs then, which is not compiled")
        return self


class TrainingSettings(LocalTrainingSettings):
    """Local training of a client in one round."""

    lr: float = Field(
        default=1e-4, gt=0, description="learning rate of the first round; [scheduler] decides the others"
    )
    proximal_mu: float = Field(
        default=0.01,
        ge=0,
        description="FedProx: mu/2 * ||w - w_global||^2 is added to the loss; 0: FedAvg; [scheduler] may adjust it",
    )

    def local_settings(self) -> LocalTrainingSettings:
        """The settings that a plan carries: all but `lr` and `proximal_mu`."""
        return LocalTrainingSettings(**self.model_dump(exclude={"lr", "proximal_mu"}))


class SchedulerSettings(Record):
    """Learning rate and FedProx mu from round to round."""

    type: Literal["cosine", "cosine_warm_restarts", "reduce_on_plateau"] = Field(
        default="cosine",
        description="cosine: cosine annealing to eta_min within each round; cosine_warm_restarts: cosine annealing "
        "with warm restarts over the rounds; reduce_on_plateau: halved when the evaluation loss stalls",
    )
    eta_min: float = Field(default=5e-7, ge=0, description="minimum learning rate")
    restart_rounds: int = Field(default=15, ge=1, le=10**7, description="T_0 of cosine_warm_restarts, in rounds")
    restart_factor: int = Field(default=2, ge=1, le=10**7, strict=True, description="T_mult of cosine_warm_restarts")
    stall_patience: int = Field(
        default=5,
        ge=1,
        le=10**7,
        description="rounds without improvement after which reduce_on_plateau halves the learning rate",
    )
    dynamic_training_decay: bool = Field(
        default=False,
        description="multiply the learning rate by 0.95 when the evaluation loss stalls, by 1.05 when it diverges",
    )
    adjustment_window: int = Field(
        default=5, ge=2, le=10**7, description="number of last evaluation losses that dynamic_training_decay compares"
    )
    spike_threshold: float = Field(
        default=0.5,
        gt=0,
        description="if the evaluation loss rises by more than this over 3 rounds, the learning rate is not adjusted",
    )
    max_adjust_factor: float = Field(
        default=1.05, ge=1, description="largest change of the learning rate in one round, as a factor, before round 20"
    )
    adaptive_lr_enabled: bool = Field(
        default=False, description="train clients with a high loss with a higher learning rate"
    )
    high_loss_multiplier: float = Field(
        default=2.0, ge=1, description="a loss is high if it exceeds the mean of all clients by this factor"
    )
    lr_boost_factor: float = Field(
        default=1.15, ge=1, description="factor for the learning rate of a client with a high loss"
    )
    adaptive_mu_enabled: bool = Field(default=False, description="raise mu while the clients' losses differ strongly")
    loss_std_threshold: float = Field(
        default=1.2, ge=0, description="losses differ strongly if their standard deviation exceeds this"
    )
    mu_adjust_factor: float = Field(default=1.05, ge=1, description="factor for mu while the losses differ strongly")
    mu_min: float = Field(default=0.001, ge=0, description="minimum of an adjusted mu")
    mu_decay: float = Field(default=1.0, gt=0, le=1, description="factor for mu from round to round")
