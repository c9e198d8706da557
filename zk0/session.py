"""A session: everything that can be asked for, with every default in this one place.

TOML files under deployments/sessions carry only what differs. `load_session` reads one, applies
overrides (`{"rounds": 5, "training.lr": 3e-4}`) and refuses what does not exist.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from zk0.errors import SettingsError
from zk0.records import Adapters, PolicyRecipe, Record, Statistics, Wire, WireFormat

SO101_JOINTS = (
    "shoulder_pan.pos",
    "shoulder_lift.pos",
    "elbow_flex.pos",
    "wrist_flex.pos",
    "wrist_roll.pos",
    "gripper.pos",
)
TINY = "tiny"
"""The policy that is built with no download, from random weights."""
BASE = "base"
"""The small policy that ships with zk0: trained on simulated tasks, its encoder too."""
DatasetUri = Annotated[str, Field(min_length=1, description="hf:user/name, user/name, local:/path or sim:task")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]


HubName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$")]


class ClientSettings(Record):
    """One client and the data set that it brings."""

    name: Name = Field(description="what its folder and its series in charts are called")
    dataset: DatasetUri
    rename_map: dict[str, str] = Field(default={}, description="feature key in the data set -> key in the contract")
    partition_index: int = Field(
        default=0, ge=0, description="which share of a data set that several clients take from"
    )
    partition_count: int = Field(default=1, ge=1, description="takes the episodes with episode_index % count == index")
    from_round: int = Field(
        default=1, ge=1, description="first round that it takes part in: later than 1, it joins a session that runs"
    )
    share_joining_report: bool = Field(
        default=False, description="let the server see what evaluation.joining_report finds; else it stays here"
    )

    @model_validator(mode="after")
    def _index_below_count(self) -> Self:
        if self.partition_index >= self.partition_count:
            raise ValueError(
                f"partition_index {self.partition_index} must be below partition_count {self.partition_count}"
            )
        return self


class PartitionSettings(Record):
    """One data set shared out to several clients by `episode_index % clients`."""

    dataset: DatasetUri
    clients: int = Field(ge=1, description="who share it")
    rename_map: dict[str, str] = Field(default={}, description="feature key in the data set -> key in the contract")


class EvaluationSetSettings(Record):
    """One data set that judges and that nobody trains on."""

    dataset: DatasetUri
    rename_map: dict[str, str] = Field(default={}, description="feature key in the data set -> key in the contract")
    last_episodes: int | None = Field(
        default=None, ge=1, description="judge on the last N episodes only; unset: on all"
    )


class ContractSettings(Record):
    """What every data set of the federation must agree to."""

    cameras: tuple[str, ...] = Field(default=("overhead", "wrist"), min_length=1, description="canonical camera names")
    joints: tuple[str, ...] = Field(
        default=SO101_JOINTS, min_length=1, description="names of state and action, in order"
    )
    fps: float | None = Field(default=None, gt=0, description="frames per second; unset: that of the first client")
    units: Literal["degrees", "radians", "normalized"] = Field(
        default="degrees", description="of states and actions; `normalized` is LeRobot's -100..100"
    )


class DataSettings(Record):
    """How each client's data set is divided."""

    holdout_episodes: int = Field(default=1, ge=0, description="the last N episodes judge and are not trained on")


class SimulatorSettings(Record):
    """How `sim:` data sets are recorded, and what a rollout sees."""

    episodes: int = Field(default=12, ge=1, description="recorded for a `sim:` data set")
    first_seed: int = Field(default=1000, ge=0, description="of the first episode; each task adds an offset of its own")
    image_size: int = Field(default=96, ge=32, description="pixels, square")
    spawn_radius_m: tuple[float, float] = Field(
        default=(0.09, 0.14), description="how far from the arm's base a cube lies, nearest and farthest"
    )
    spawn_half_angle_degrees: float = Field(default=25.0, gt=0, le=90, description="how far to either side")


class PolicySettings(Record):
    """Which policy is trained."""

    path: str = Field(
        default="lerobot/smolvla_base",
        description="Hub name or folder of a LeRobot SmolVLA policy; with no download: `tiny`, small and random, "
        "or `base`, small and trained on a task of the simulator",
    )
    revision: str | None = Field(default=None, description="branch, tag or commit on the Hub; unset: main")


class TrainingSettings(Record):
    """A client's work in one round."""

    local_steps: int | None = Field(default=None, ge=1, description="optimizer steps a round")
    local_epochs: int | None = Field(default=1, ge=1, description="passes over the training frames a round")
    batch_size: int = Field(default=64, ge=1, description="frames")
    accumulate_steps: int = Field(
        default=1, ge=1, description="pieces that a batch is computed in, one after the other: less memory, same result"
    )
    lr: float = Field(
        default=1e-4, gt=0, description="learning rate of the first round; the scheduler decides the others"
    )
    proximal_mu: float = Field(
        default=0.01, ge=0, description="FedProx: mu/2 * ||w - w_global||^2 is added to the loss; 0 is FedAvg"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="of AdamW")
    eps: float = Field(default=1e-8, gt=0, description="of AdamW")
    weight_decay: float = Field(default=1e-10, ge=0, description="of AdamW")
    grad_clip_norm: float = Field(default=10.0, gt=0, description="largest L2 norm of a gradient")
    adapter: Literal["none", "lora"] = Field(
        default="none", description="lora: train and send low-rank factors of the action expert's matrices only"
    )
    lora_rank: int = Field(default=16, ge=1, description="columns of a factor")
    lora_alpha: int = Field(default=32, ge=1, description="the product of the factors counts alpha / rank times")
    lora_dropout: float = Field(default=0.1, ge=0, lt=1, description="share of a matrix's inputs that a factor misses")
    amp: bool = Field(default=False, description="bf16 autocast; trained weights stay fp32")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is one")
    gpu_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of a GPU that one client takes while it works: 1 lets them take turns, 0.5 lets two work at "
        "once, 0 lets nobody wait",
    )
    features: Literal["embeddings", "kv", "off"] = Field(
        default="embeddings",
        description="keep what the frozen encoder says of each frame; kv: what the language model makes of it too, "
        "12 times the bytes; off: decode every time",
    )
    feature_cache_gb: float = Field(
        default=50.0, gt=0, description="GB (1e9 bytes) of kept features under cache_dir; least recently used go first"
    )
    deterministic: bool = Field(
        default=False, description="deterministic kernels on a GPU: the same bits every time, slower"
    )
    torch_threads: int = Field(default=1, ge=1, description="CPU threads of one client")
    log_every_steps: int = Field(default=20, ge=1, description="lines of a client's log")

    def adapters(self) -> Adapters | None:
        """The adapters that are trained instead of whole matrices, if any."""
        return Adapters(rank=self.lora_rank, alpha=self.lora_alpha) if self.adapter == "lora" else None

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


class SchedulerSettings(Record):
    """Learning rate and mu between rounds."""

    type: Literal["cosine", "cosine_warm_restarts", "reduce_on_plateau"] = Field(
        default="cosine",
        description="cosine: down to eta_min within each round; cosine_warm_restarts: over rounds; reduce_on_plateau: "
        "halved when the loss on unseen data stalls",
    )
    eta_min: float = Field(default=5e-7, ge=0, description="smallest learning rate")
    restart_rounds: int = Field(default=15, ge=1, description="T_0 of cosine_warm_restarts")
    restart_factor: int = Field(default=2, ge=1, strict=True, description="T_mult of cosine_warm_restarts")
    stall_patience: int = Field(
        default=5, ge=1, description="rounds without improvement before reduce_on_plateau halves"
    )
    dynamic_training_decay: bool = Field(
        default=False, description="x 0.95 when the loss on unseen data stalls, x 1.05 when it diverges"
    )
    adjustment_window: int = Field(default=5, ge=2, description="losses that are looked at for that")
    spike_threshold: float = Field(
        default=0.5, gt=0, description="a rise of the loss over three rounds that holds every adjustment"
    )
    max_adjust_factor: float = Field(
        default=1.05, ge=1, description="most that a round before the 20th changes the learning rate by"
    )
    adaptive_lr_enabled: bool = Field(
        default=False, description="a client with a high loss trains with a higher learning rate"
    )
    high_loss_multiplier: float = Field(
        default=2.0, gt=0, description="high: above so many times the mean of the clients"
    )
    lr_boost_factor: float = Field(default=1.15, gt=0, description="what its learning rate is multiplied by")
    adaptive_mu_enabled: bool = Field(default=False, description="a larger mu while clients differ much")
    loss_std_threshold: float = Field(
        default=1.2, ge=0, description="much: standard deviation of the clients' losses above this"
    )
    mu_adjust_factor: float = Field(default=1.05, gt=0, description="what mu is multiplied by then")
    mu_min: float = Field(default=0.001, ge=0, description="smallest mu")
    mu_decay: float = Field(default=1.0, gt=0, le=1, description="what mu is multiplied by from round to round")


class FederationSettings(Record):
    """Who carries the messages."""

    engine: Literal["local", "ray", "deployment"] = Field(
        default="local", description="processes of this machine, Flower's simulation on Ray, or nodes over the network"
    )
    workers: int = Field(default=2, ge=0, description="worker processes; 0 runs clients in this process (local only)")
    min_updates: int = Field(default=2, ge=1, description="good updates that a round needs")
    fraction_fit: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the clients that train in a round, drawn anew for each; never fewer than min_updates",
    )
    round_timeout_seconds: float = Field(
        default=3600.0, gt=0, description="a client that has not answered by then is left out of the round"
    )
    round_retries: int = Field(
        default=1,
        ge=0,
        description="further attempts at a round with too few good updates; who has answered is not asked again",
    )
    wire: WireFormat = Field(
        default="fp32",
        description="what clients send: fp32: weights; bf16, int8: steps in half or a quarter of the bytes",
    )
    wire_down: WireFormat = Field(
        default="fp32", description="how clients are sent the weights; the server's own stay float32"
    )
    compress: bool = Field(default=False, description="clients compress what they send, without loss: for slow lines")
    server: str = Field(default="~/.zk0/server", description="folder of `zk0bot server init` (deployment only)")
    nodes: tuple[Name, ...] = Field(
        default=(), description="who takes part, as enrolled; empty: all that are connected (deployment only)"
    )
    absence_seconds: float = Field(
        default=300.0, ge=0, description="how long a node may be out of reach before a round goes on without it"
    )
    newcomer_seconds: float = Field(
        default=120.0,
        ge=0,
        description="how long a round waits for nodes that came after the session began to check their data and join; "
        "0: they take no part in it (deployment without `nodes` only)",
    )


Strategy = Literal[
    "fedavg", "fedavgm", "fedadam", "fedyogi", "scaffold", "median", "trimmed_mean", "krum", "multi_krum"
]


class AggregationSettings(Record):
    """How the server makes new global weights of the clients' updates."""

    strategy: Strategy = Field(default="fedavg", description="fedavg is FedProx too, whose term is the clients'")
    server_lr: float | None = Field(
        default=None, gt=0, description="of fedavgm, fedadam, fedyogi and scaffold; unset: 1, 0.1, 0.01 and 1"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of fedavgm")
    beta_1: float = Field(default=0.9, ge=0, lt=1, description="of fedadam and fedyogi")
    beta_2: float = Field(default=0.99, ge=0, lt=1, description="of fedadam and fedyogi")
    tau: float = Field(default=1e-3, gt=0, description="of fedadam and fedyogi: the least that a step is divided by")
    trim_fraction: float = Field(
        default=0.2, gt=0, lt=0.5, description="of trimmed_mean: share of the updates that goes at either end"
    )
    malicious: int = Field(default=0, ge=0, description="of krum and multi_krum: updates that may be anything")
    selected: int | None = Field(
        default=None, ge=1, description="of multi_krum: updates that are averaged; unset: all but malicious + 2"
    )
    clip_norm: float | None = Field(default=None, gt=0, description="longest step of an update; longer ones are scaled")
    noise_multiplier: float = Field(
        default=0.0, ge=0, description="Gaussian noise on the mean, in steps of clip_norm; every client counts the same"
    )
    privacy_delta: float = Field(default=1e-5, gt=0, lt=1, description="delta that epsilon is told for")
    quarantine_factor: float = Field(
        default=100.0, ge=0, description="steps longer than so many times the median are refused; 0: none is"
    )

    def least_updates(self) -> int:
        """Fewer updates than these and the strategy is not what it says."""
        return {
            "trimmed_mean": ceil(1 / self.trim_fraction),
            "krum": 2 * self.malicious + 3,
            "multi_krum": max(2 * self.malicious + 3, self.selected or 0),
        }.get(self.strategy, 1)

    @field_validator("quarantine_factor")
    @classmethod
    def _beyond_the_median(cls, factor: float) -> float:
        if 0 < factor <= 1:
            raise ValueError(f"quarantine_factor {factor:g} would refuse the median; expected 0 or more than 1")
        return factor

    @model_validator(mode="after")
    def _noise_covers_every_client(self) -> Self:
        if self.noise_multiplier == 0:
            return self
        if self.clip_norm is None:
            raise ValueError("noise_multiplier needs clip_norm: without it no noise is enough")
        if self.strategy not in ("fedavg", "fedavgm", "fedadam", "fedyogi"):
            raise ValueError(f"noise_multiplier needs a mean of all updates, strategy {self.strategy} is none")
        if self.quarantine_factor:
            raise ValueError("noise_multiplier needs quarantine_factor = 0: who is refused would tell of the others")
        return self


class EvaluationSettings(Record):
    """How the global model is judged."""

    datasets: tuple[EvaluationSetSettings, ...] = Field(
        default=(), description="data that nobody trains on; empty with [partition]: its held-out episodes"
    )
    frequency: int = Field(default=1, ge=1, description="judge every N rounds, and always the last")
    clients_frequency: int = Field(
        default=1,
        ge=0,
        description="clients judge on their own held-out episodes every N rounds, and after the last; 0: never",
    )
    joining_report: bool = Field(
        default=False,
        description="after the last round each client trains alone as long as the session did, and is told on its own "
        "held-out episodes what joining has brought it",
    )
    times: int = Field(default=8, ge=1, description="stratified flow-matching times per frame")
    batch_size: int = Field(default=32, ge=1, description="frames")
    every_frames: int = Field(
        default=4,
        ge=1,
        description="frames 0, N, 2N, ... of each episode are judged: their neighbours say nearly the same",
    )


class RolloutSettings(Record):
    """Closed-loop attempts in the simulator: the same seeds for every model."""

    tasks: tuple[str, ...] = Field(default=(), description="tasks of the simulator; empty: no rollout")
    seeds: tuple[int, ...] = Field(default=(9000,), min_length=1, description="one attempt each, in every round alike")
    max_steps: int = Field(default=60, ge=1, description="of an attempt")
    replan_steps: int = Field(default=5, ge=1, description="actions of a chunk that are carried out before the next")
    environments: int = Field(
        default=4, ge=1, description="attempts side by side, one policy call for all; 200 MB of memory each"
    )
    base: bool = Field(default=True, description="the model of round 0 as well, to compare with")
    frequency: int = Field(default=0, ge=0, description="rounds between attempts; 0: only the last round")
    keep_dataset: bool = Field(default=False, description="keep the attempts as a LeRobot data set beside their films")

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{len(seeds)} seeds, {len(set(seeds))} of them different; expected each once")
        return seeds


class VideoSettings(Record):
    """Films of what the policy sees and does."""

    frequency: int = Field(default=0, ge=0, description="rounds between films, of rounds that are tried; 0: the last")
    rollouts: int = Field(default=1, ge=0, description="attempts of each task that are filmed, the first seeds")
    episodes: int = Field(
        default=1, ge=0, description="judging episodes of each data set that are filmed, predicted beside recorded"
    )
    camera_height: int = Field(default=240, ge=64, description="pixels of a camera's picture in a film")


class TrackingSettings(Record):
    """Whether the numbers of each round go to Weights & Biases too."""

    wandb: Literal["off", "offline", "online"] = Field(
        default="off", description="offline: written to the session's folder, for `wandb sync`; needs no account"
    )
    project: str = Field(default="zk0", min_length=1, description="what the run belongs to")
    entity: str | None = Field(default=None, description="user or team; unset: the account's own")


class PublishSettings(Record):
    """Whether and where the last checkpoint is pushed."""

    repo_id: HubName | None = Field(default=None, description="user/name of a model on the Hub; unset: nothing leaves")
    private: bool = Field(default=True, description="of a repository that does not exist yet")
    min_rounds: int = Field(default=20, ge=1, description="rounds that must have run")
    approval: bool = Field(default=False, description="a person must agree in the Prefect UI before anything is pushed")
    approval_timeout_seconds: int = Field(default=7 * 86400, ge=1, description="how long that person has")
    retry_seconds: tuple[float, ...] = Field(
        default=(10.0, 60.0, 300.0), description="waits between attempts while the Hub does not answer"
    )


class Session(Record):
    """One federated training session."""

    name: Name = Field(default="session", description="what its folder and its run are called")
    rounds: int = Field(default=30, ge=1, description="that train")
    seed: int = Field(
        default=42, ge=0, lt=2**63, description="of everything that is drawn: batches, noise, who takes part"
    )
    clients: tuple[ClientSettings, ...] = ()
    partition: PartitionSettings | None = None
    contract: ContractSettings = ContractSettings()
    data: DataSettings = DataSettings()
    simulator: SimulatorSettings = SimulatorSettings()
    policy: PolicySettings = PolicySettings()
    normalization: Literal["pooled", "client"] = Field(
        default="pooled",
        description="statistics of the whole federation, or each client's own: then losses are not comparable",
    )
    training: TrainingSettings = TrainingSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    federation: FederationSettings = FederationSettings()
    aggregation: AggregationSettings = AggregationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    rollout: RolloutSettings = RolloutSettings()
    video: VideoSettings = VideoSettings()
    tracking: TrackingSettings = TrackingSettings()
    publish: PublishSettings = PublishSettings()
    checkpoint_interval: int = Field(default=0, ge=0, description="rounds between saved policies; 0: only the last")
    keep_updates: bool = Field(default=False, description="keep clients' updates after their round is recorded")
    output_dir: str = Field(default="outputs", description="where sessions' folders lie")
    cache_dir: str = Field(
        default="~/.cache/zk0", description="downloads, recordings and kept features, shared by sessions"
    )

    @field_validator("clients")
    @classmethod
    def _names_differ(cls, clients: tuple[ClientSettings, ...]) -> tuple[ClientSettings, ...]:
        names = [c.name for c in clients]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"client names must differ, found twice: {', '.join(twice)}")
        return clients

    @model_validator(mode="after")
    def _who_takes_part(self) -> Self:
        deployed = self.federation.engine == "deployment"
        if deployed and (self.clients or self.partition):
            raise ValueError(
                "nodes of the deployment engine bring their own data: leave [[clients]] and [partition] out"
            )
        if not deployed and bool(self.clients) == (self.partition is not None):
            raise ValueError("exactly one of [[clients]] and [partition] must be given")
        if not self.judges():
            raise ValueError("evaluation.datasets is empty, and no [partition] holds episodes out to judge on")
        names = self.starters()
        if (names or not deployed) and self.federation.min_updates > len(names):
            raise ValueError(
                f"federation.min_updates {self.federation.min_updates} with {len(names)} client(s) in round 1"
            )
        if self.federation.min_updates < (least := self.aggregation.least_updates()):
            raise ValueError(
                f"aggregation.strategy {self.aggregation.strategy} needs {least} updates in every round with these "
                f"settings, federation.min_updates is {self.federation.min_updates}"
            )
        if self.evaluation.joining_report and self.data.holdout_episodes == 0:
            raise ValueError("evaluation.joining_report needs data.holdout_episodes of 1 or more")
        if self.training.adapter != "none" and self.federation.wire != "fp32":
            raise ValueError(f"federation.wire {self.federation.wire} with adapters: their factors travel as fp32")
        if self.federation.wire_down != "fp32" and self.federation.wire == "fp32" and self.training.adapter == "none":
            raise ValueError(
                f"federation.wire_down {self.federation.wire_down} needs steps in return (federation.wire bf16 or "
                "int8, or adapters): whole weights would bring its rounding into the server's own"
            )
        dense = self.training.adapter == "none" and self.federation.wire == self.federation.wire_down == "fp32"
        if self.aggregation.strategy == "scaffold" and not dense:
            raise ValueError("aggregation.strategy scaffold needs whole float32 weights both ways, and no adapters")
        if self.federation.engine == "ray" and self.federation.workers == 0:
            raise ValueError("federation.workers must be at least 1 with the ray engine")
        return self

    def at(self, base: Path) -> Self:
        """The same session with its relative folders taken from `base`."""

        def absolute(uri: str) -> str:
            scheme, colon, rest = uri.partition(":")
            return f"local:{(base / Path(rest).expanduser()).resolve()}" if colon and scheme == "local" else uri

        def moved[T: (ClientSettings, PartitionSettings, EvaluationSetSettings)](one: T) -> T:
            return one.model_copy(update={"dataset": absolute(one.dataset)})

        judges = tuple(moved(one) for one in self.evaluation.datasets)
        folder = (base / Path(self.policy.path).expanduser()).resolve()
        is_folder = self.policy.path not in (TINY, BASE) and folder.is_dir()
        return self.model_copy(
            update={
                "clients": tuple(moved(one) for one in self.clients),
                "partition": self.partition and moved(self.partition),
                "policy": self.policy.model_copy(update={"path": str(folder)}) if is_folder else self.policy,
                "evaluation": self.evaluation.model_copy(update={"datasets": judges}),
                "federation": self.federation.model_copy(
                    update={"server": str((base / Path(self.federation.server).expanduser()).resolve())}
                ),
                "output_dir": str((base / Path(self.output_dir).expanduser()).resolve()),
                "cache_dir": str((base / Path(self.cache_dir).expanduser()).resolve()),
            }
        )

    def judged_after(self, round_number: int) -> bool:
        """Whether the global model of this round is judged on data that nobody trains on."""
        return round_number % self.evaluation.frequency == 0 or round_number == self.rounds

    def clients_judge_after(self, round_number: int) -> bool:
        """Whether clients judge the global model of this round on what they hold out."""
        frequency = self.evaluation.clients_frequency
        if frequency == 0 or self.data.holdout_episodes == 0:
            return False
        return round_number % frequency == 0 or round_number == self.rounds

    def rolled_out_after(self, round_number: int) -> bool:
        """Whether the model of this round moves the simulated arm."""
        if not self.rollout.tasks:
            return False
        if round_number == 0:
            return self.rollout.base
        often = self.rollout.frequency
        return round_number == self.rounds or (often > 0 and round_number % often == 0)

    def filmed_after(self, round_number: int) -> bool:
        """Whether what the model of this round does is filmed."""
        often = self.video.frequency
        return round_number == self.rounds or (often > 0 and round_number % often == 0)

    def judges(self) -> tuple[EvaluationSetSettings, ...]:
        """The sets that judge: those asked for, or what a shared data set holds out."""
        if self.evaluation.datasets or self.partition is None or self.data.holdout_episodes == 0:
            return self.evaluation.datasets
        shared = self.partition
        return (
            EvaluationSetSettings(
                dataset=shared.dataset, rename_map=shared.rename_map, last_episodes=self.data.holdout_episodes
            ),
        )

    def members(self) -> tuple[ClientSettings, ...]:
        """The clients whose data this machine has, however they were asked for; none with the deployment engine."""
        if self.partition is None:
            return self.clients
        shared = self.partition
        return tuple(
            ClientSettings(
                name=f"client_{index}",
                dataset=shared.dataset,
                rename_map=shared.rename_map,
                partition_index=index,
                partition_count=shared.clients,
            )
            for index in range(shared.clients)
        )

    def client_names(self) -> tuple[str, ...]:
        """Who takes part; empty: whoever is connected."""
        return self.federation.nodes or tuple(client.name for client in self.members())

    def starters(self) -> tuple[str, ...]:
        """Who takes part from the first round on; empty: whoever is connected then."""
        return self.federation.nodes or tuple(client.name for client in self.members() if client.from_round == 1)

    def is_due(self, client: str, round_number: int) -> bool:
        """Whether a client that has joined takes part in this round."""
        return all(one.from_round <= round_number for one in self.members() if one.name == client)

    def may_grow(self) -> bool:
        """Whether clients may come after the first round."""
        comers = self.federation.newcomer_seconds > 0 and not self.federation.nodes
        deployed = self.federation.engine == "deployment"
        return comers if deployed else any(client.from_round > 1 for client in self.members())


class Terms(Record):
    """What a client is told when it joins, and again with every plan."""

    session: str
    seed: int
    contract: ContractSettings
    data: DataSettings
    simulator: SimulatorSettings


class Plan(Record):
    """What every message about the global model says."""

    terms: Terms
    round: int = Field(ge=0)
    client: str
    recipe: PolicyRecipe
    global_digest: str
    statistics: Statistics | None
    """Pooled statistics; None: the client normalises with its own."""
    training: TrainingSettings
    wire: Wire = Wire()


class FilmPlan(Record):
    """How judging episodes are filmed."""

    episodes: int = Field(ge=1)
    camera_height: int
    when: datetime
    """What the films are named by."""


class EvaluationPlan(Plan):
    """All that one client is told about judging the global model of one round."""

    times: int
    batch_size: int
    every_frames: int
    film: FilmPlan | None = None
    """None: nothing is filmed."""


class JoiningPlan(EvaluationPlan):
    """All that one client is told to find out what joining has brought it."""

    lrs: tuple[float, ...] = Field(min_length=1)
    """Learning rates that the session's rounds gave it, in order."""
    scheduler: SchedulerSettings


class RoundPlan(Plan):
    """All that one client is told about one round; one message carries it."""

    round: int = Field(ge=1)
    lr: float = Field(gt=0)
    mu: float = Field(ge=0)
    scheduler: SchedulerSettings
    control: bool = False
    """SCAFFOLD: gradients are corrected by control variates."""

    def digest(self) -> str:
        """SHA-256 of the plan: a client that has answered it before need not train again."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def terms_of(session: Session, name: str) -> Terms:
    """What every client of this session is told; `name` tells this run of the session from others."""
    return Terms(
        session=name,
        seed=session.seed,
        contract=session.contract,
        data=session.data,
        simulator=session.simulator,
    )


def apply_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted keys in nested settings.

    >>> apply_overrides({"rounds": 3}, {"training.lr": 0.1, "rounds": 5})
    {'rounds': 5, 'training': {'lr': 0.1}}
    """
    result = deepcopy(dict(values))
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        inner = result
        for parent in parents:
            below = inner.setdefault(parent, {})
            if not isinstance(below, dict):
                raise SettingsError(f"{dotted}: {parent} is a {type(below).__name__}, not a table of settings")
            inner = below
        inner[last] = value
    return result


def parse_session(values: Mapping[str, Any], where: str) -> Session:
    """Settings as read, as a Session.

    Raises:
        SettingsError: names the file, the setting, what was found and what was expected.
    """
    try:
        return Session.model_validate(values)
    except ValidationError as e:
        faults = [f"{'.'.join(map(str, f['loc'])) or 'session'}: {_expected(f)}" for f in e.errors()]
        raise SettingsError(f"{where}: " + "; ".join(faults)) from e


def load_session(path: Path, overrides: Mapping[str, Any] | None = None) -> Session:
    """A session from a TOML file, with overrides by dotted name.

    Raises:
        SettingsError: the file is missing or not TOML, or a setting does not exist or cannot be.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise SettingsError(f"{path}: cannot be read ({e.strerror}); expected a session file in TOML") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise SettingsError(f"{path}: not TOML: {e}") from e
    return parse_session(apply_overrides(values, overrides or {}), str(path))


def _expected(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown setting"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return message if fault["type"] in ("missing", "value_error") else f"{message}, found {fault['input']!r}"
