"""All settings of one federated session, and what follows from them for its clients and rounds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from zk0.records import SUM_NAME, Record
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.settings.buffer_settings import BufferSettings
from zk0.settings.dataset_settings import (
    ClientSettings,
    ContractSettings,
    DataSettings,
    EvaluationSetSettings,
    PartitionSettings,
    SafeName,
    SimulatorSettings,
)
from zk0.settings.evaluation_settings import EvaluationSettings, RolloutSettings, VideoSettings
from zk0.settings.federation_settings import MAX_CLIENTS_OF_16_BITS, FederationSettings
from zk0.settings.home_folder import expand_home, has_home
from zk0.settings.publish_settings import PublishSettings, TrackingSettings
from zk0.settings.training_settings import BUILT_IN_POLICIES, PolicySettings, SchedulerSettings, TrainingSettings


def absolute_path(path: str, base: Path) -> str:
    """Return a path resolved against `base`; `~` is the user's home.

    Raises:
        SettingsError: the path begins with `~`, and there is no such home.
    """
    return str((base / expand_home(path)).resolve())


class Session(Record):
    """One federated training session."""

    name: SafeName = Field(default="session", description="name of the session; part of its folder's name")
    rounds: int = Field(default=30, ge=1, description="number of training rounds")
    seed: int = Field(
        default=42, ge=0, lt=2**63, description="seed of batches, noise, initial weights and sampled participants"
    )
    clients: tuple[ClientSettings, ...] = ()
    partition: PartitionSettings | None = None
    contract: ContractSettings = ContractSettings()
    data: DataSettings = DataSettings()
    simulator: SimulatorSettings = SimulatorSettings()
    policy: PolicySettings = PolicySettings()
    normalization: Literal["auto", "policy", "pooled", "client"] = Field(
        default="auto",
        description="policy: normalize with the statistics that the start policy carries; pooled: with those of the "
        "whole federation; client: each client with its own, so that losses of different clients are not comparable; "
        "auto: policy if it carries some that fit the clients' joints and units, else pooled",
    )
    training: TrainingSettings = TrainingSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    federation: FederationSettings = FederationSettings()
    buffer: BufferSettings = BufferSettings()
    aggregation: AggregationSettings = AggregationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    rollout: RolloutSettings = RolloutSettings()
    video: VideoSettings = VideoSettings()
    tracking: TrackingSettings = TrackingSettings()
    publish: PublishSettings = PublishSettings()
    checkpoint_interval: int = Field(
        default=0, ge=0, description="rounds between saved policies; 0: only the policy of the last round"
    )
    selection: Literal["last", "best"] = Field(
        default="last",
        description="round of the session's policy, which is released; best: most successful attempts where several "
        "rounds were rolled out, else lowest loss on unseen data; the best round is saved in any case",
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="end the session after N evaluated rounds in a row without a lower loss on unseen data; 0: never",
    )
    keep_updates: bool = Field(default=False, description="keep the clients' updates after their round is recorded")
    keep_weights: bool = Field(
        default=False,
        description="keep the global weights of every round; else those of the first, the best and the last round, and "
        "of rounds with a saved policy or rollouts",
    )
    output_dir: str = Field(default="outputs", description="parent of the session folders")
    disk_limit_gb: float | None = Field(
        default=None,
        gt=0,
        description="limit of the session's folder in GB (1e9 bytes), checked after each round; unset: what the "
        "session names at its start",
    )
    cache_dir: str = Field(
        default="~/.cache/zk0", description="downloads, simulated datasets and cached features, shared by all sessions"
    )

    @field_validator("clients")
    @classmethod
    def _names_are_unique(cls, clients: tuple[ClientSettings, ...]) -> tuple[ClientSettings, ...]:
        names = [c.name for c in clients]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"client names must differ, found twice: {', '.join(twice)}")
        return clients

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        deployed = self.federation.engine == "deployment"
        if deployed and (self.clients or self.partition):
            raise ValueError(
                "nodes of the deployment engine bring their own datasets: leave [[clients]] and [partition] out"
            )
        if not deployed and bool(self.clients) == (self.partition is not None):
            raise ValueError("exactly one of [[clients]] and [partition] must be given")
        if not self.evaluation_sets():
            raise ValueError(
                "evaluation.datasets is empty, and there are no held-out episodes of a [partition] to evaluate on"
            )
        names = self.initial_client_names()
        for name in ("min_updates", "min_nodes"):
            if (names or not deployed) and (least := getattr(self.federation, name)) > len(names):
                raise ValueError(f"federation.{name} {least} with {len(names)} client(s) in round 1")
        if self.normalization == "policy" and self.contract.other_groups:
            raise ValueError(
                "normalization policy with contract.other_groups: a policy carries statistics of one group only"
            )
        if self.evaluation.joining_report and self.data.holdout_episodes == 0:
            raise ValueError("evaluation.joining_report needs data.holdout_episodes of 1 or more")
        if self.evaluation.joining_report and self.training.scope == "lora":
            raise ValueError(
                "evaluation.joining_report with training.scope lora: a client trained alone would have LoRA factors, "
                "not weights to go on from; leave one of the two out"
            )
        if self.training.scope == "lora" and self.federation.wire != "fp32":
            raise ValueError(
                f"federation.wire {self.federation.wire} with training.scope lora: LoRA factors are sent as fp32"
            )
        sends_deltas = self.federation.wire != "fp32" or self.federation.secure or self.training.scope == "lora"
        if self.federation.wire_down != "fp32" and not sends_deltas:
            raise ValueError(
                f"federation.wire_down {self.federation.wire_down} needs deltas in return (federation.wire bf16 or "
                "int8, or training.scope lora): full weights would carry its rounding errors to the server"
            )
        if self.federation.engine == "ray" and self.federation.workers == 0:
            raise ValueError("federation.workers must be at least 1 with the ray engine")
        return self

    @model_validator(mode="after")
    def _personal_policies_are_evaluated(self) -> Self:
        if self.training.personal and not self.evaluates_on_clients() and not self.federation.secure:
            raise ValueError(
                "training.personal needs data.holdout_episodes and evaluation.clients_frequency of 1 or more, and "
                "evaluation.datasets beside a [partition]: a client saves its own policy when it evaluates"
            )
        if self.training.personal and self.evaluation.joining_report:
            raise ValueError(
                "evaluation.joining_report with training.personal: the report compares models whose parameters are all "
                "federated; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _clients_of_a_ray_cluster_keep_no_state(self) -> Self:
        if self.federation.ray_address is None:
            return self
        if self.federation.engine != "ray":
            raise ValueError(f"federation.ray_address with engine {self.federation.engine}; expected engine ray")
        stateful = {
            "federation.wire int8": self.federation.wire == "int8",
            "aggregation.strategy scaffold": self.aggregation.strategy == "scaffold",
            "evaluation.joining_report": self.evaluation.joining_report,
            "training.personal": bool(self.training.personal),
        }
        if found := [name for name, is_set in stateful.items() if is_set]:
            raise ValueError(
                f"federation.ray_address with {', '.join(found)}: a client keeps a state of it between rounds, and a "
                "cluster trains it on another machine in each round; leave it out, or use nodes (engine deployment)"
            )
        return self

    @model_validator(mode="after")
    def _buffer_fits_the_clients(self) -> Self:
        if self.federation.mode == "synchronous":
            if self.buffer != BufferSettings():
                raise ValueError('[buffer] is of federation.mode "buffered", found mode "synchronous"')
        elif faults := list(self._buffer_faults()):
            raise ValueError("federation.mode buffered: " + "; ".join(faults))
        return self

    def _buffer_faults(self) -> Iterator[str]:
        names, buffer = self.client_names(), self.buffer
        if self.federation.fraction_fit < 1:
            fraction = self.federation.fraction_fit
            yield f"no sample of the clients, found federation.fraction_fit {fraction:g}; expected buffer.concurrency"
        if self.evaluation.joining_report:
            yield "no evaluation.joining_report: clients train in different numbers of rounds"
        first = len(self.initial_client_names())
        if names and buffer.size > first:
            yield f"buffer.size {buffer.size} with {first} client(s), of which a buffer holds one update each"
        at_work = min(len(names), buffer.concurrency or len(names))
        oldest = min((at_work - 1) // buffer.size, self.rounds - 1)
        if names and oldest > buffer.max_staleness and buffer.max_stale_updates < buffer.size:
            most = (buffer.max_staleness + 1) * buffer.size
            yield (
                f"buffer.max_staleness {buffer.max_staleness} with {at_work} clients at work and buffer.size "
                f"{buffer.size}: even of clients of one speed, the last one's update begins {oldest} server steps "
                f"before it arrives, and is refused; expected buffer.concurrency of at most {most}, or a larger "
                "buffer.max_staleness"
            )
        if buffer.max_stale_updates > buffer.size:
            yield f"buffer.max_stale_updates {buffer.max_stale_updates} with buffer.size {buffer.size}"
        if buffer.staleness == "constant" and buffer.staleness_exponent != BufferSettings().staleness_exponent:
            yield f"buffer.staleness_exponent {buffer.staleness_exponent:g} is of staleness polynomial, found constant"
        if self.federation.min_updates > buffer.size:
            yield f"federation.min_updates {self.federation.min_updates} with buffer.size {buffer.size}"
        if buffer.simulated_seconds and not names:
            yield "buffer.simulated_seconds needs the names of the clients: set federation.nodes"
        elif buffer.simulated_seconds and set(buffer.simulated_seconds) != set(names):
            found = ", ".join(sorted(buffer.simulated_seconds))
            yield f"buffer.simulated_seconds of {found}; expected those of all clients: {', '.join(sorted(names))}"
        if self.scheduler.adaptive_lr_enabled and buffer.size <= self.scheduler.high_loss_multiplier:
            yield (
                f"scheduler.high_loss_multiplier {self.scheduler.high_loss_multiplier:g} with buffer.size "
                f"{buffer.size}: a loss never exceeds the sum of the losses of a buffer; expected a lower multiplier"
            )

    @model_validator(mode="after")
    def _updates_can_be_summed_in_secret(self) -> Self:
        if not self.federation.secure:
            unused = FederationSettings()
            for name in ("secure_neighbors", "secure_bits"):
                if getattr(self.federation, name) != getattr(unused, name):
                    raise ValueError(f"federation.{name} is of secure aggregation, found federation.secure false")
        elif faults := list(self._secure_faults()):
            raise ValueError("federation.secure: " + "; ".join(faults))
        return self

    def _secure_faults(self) -> Iterator[str]:
        federation, scheduler = self.federation, self.scheduler
        if federation.mode == "buffered":
            yield (
                "no federation.mode buffered: the clients of a sum agree on one round and its weights, and a buffer "
                "holds updates that began in different ones"
            )
        if federation.ray_address is not None:
            yield "no federation.ray_address: a client keeps its secrets between messages, on one machine"
        if self.aggregation.quarantine_factor:
            yield "needs aggregation.quarantine_factor = 0: the server does not learn the norm of an update"
        if federation.wire != "fp32" or federation.compress:
            yield "no federation.wire or federation.compress: words of secure_bits bits are sent, which look random"
        if self.training.scope == "lora":
            yield "no training.scope lora: the sum of factors is not the factors of the sum"
        for name in ("adaptive_lr_enabled", "adaptive_mu_enabled"):
            if getattr(scheduler, name):
                yield f"no scheduler.{name}: the server does not learn the loss of a client"
        if self.evaluates_on_clients():
            yield "needs evaluation.clients_frequency = 0: a score is a metric of a single client"
        if self.training.personal:
            yield "no training.personal: a client saves its own policy when it evaluates, and its score would be known"
        if self.evaluation.joining_report:
            yield "no evaluation.joining_report: it compares the metrics of single clients"
        sure = 0 if federation.engine == "deployment" else len(self.initial_client_names())  # nodes may be left out
        if (count := max(federation.min_updates, int(sure * federation.fraction_fit))) < 3:
            yield f"{count} client(s) in a round, expected 3 or more: of two, each would know the other's update"
        if federation.secure_bits == 16 and int(sure * federation.fraction_fit) > MAX_CLIENTS_OF_16_BITS:
            yield f"more than {MAX_CLIENTS_OF_16_BITS} clients in a round need federation.secure_bits = 32"
        if SUM_NAME in self.client_names():
            yield f"no client named {SUM_NAME}: the record of the sum has this name"

    @model_validator(mode="after")
    def _scheduler_fits_training(self) -> Self:
        scheduler, training = self.scheduler, self.training
        if scheduler.eta_min > training.lr:
            raise ValueError(
                f"scheduler.eta_min {scheduler.eta_min:g} is the minimum learning rate, and training.lr "
                f"{training.lr:g} is below it"
            )
        changes_mu = scheduler.adaptive_mu_enabled or scheduler.mu_decay < 1
        if changes_mu and 0 < training.proximal_mu < scheduler.mu_min:
            raise ValueError(
                f"scheduler.mu_min {scheduler.mu_min:g} is the minimum of an adjusted mu, and training.proximal_mu "
                f"{training.proximal_mu:g} is below it"
            )
        count = self._most_clients_in_a_round()
        if scheduler.adaptive_lr_enabled and 0 < count <= scheduler.high_loss_multiplier:
            raise ValueError(
                f"scheduler.high_loss_multiplier {scheduler.high_loss_multiplier:g} with {count} client(s) in a round: "
                f"a loss is compared with the mean that includes it, so it never exceeds {count} times that mean; "
                f"expected a multiplier below {count}"
            )
        return self

    def _most_clients_in_a_round(self) -> int:
        """Return how many clients train in the last round: none leaves, and those of later rounds never come."""
        federation, local = self.federation, self.local_clients()
        there = len(federation.nodes or [one for one in local if one.from_round <= self.rounds])
        return min(there, max(federation.min_updates, int(there * federation.fraction_fit)))

    def with_absolute_paths(self, base: Path) -> Self:
        """The same session, with relative folders resolved against `base`.

        Raises:
            SettingsError: a path that the session uses begins with `~`, and there is no such home.
        """

        def absolute(path: str) -> str:
            return absolute_path(path, base)

        def located[T: (ClientSettings, PartitionSettings, EvaluationSetSettings)](settings: T) -> T:
            scheme, colon, rest = settings.dataset.partition(":")
            is_folder = bool(colon) and scheme == "local"
            changes = {"dataset": f"local:{absolute(rest)}"} if is_folder else {}
            places = {"place": absolute(settings.place)} if settings.place is not None else {}
            return settings.model_copy(update={**changes, **places})

        policy, federation, evaluation, buffer = self.policy, self.federation, self.evaluation, self.buffer
        server = federation.server
        if federation.engine == "deployment" or has_home(server):  # no other engine uses it
            server = absolute(server)
        order_of = buffer.order_of and absolute(buffer.order_of)
        is_folder = policy.path not in BUILT_IN_POLICIES and Path(absolute(policy.path)).is_dir()
        datasets = tuple(located(one) for one in evaluation.datasets)
        return self.model_copy(
            update={
                "clients": tuple(located(one) for one in self.clients),
                "partition": self.partition and located(self.partition),
                "policy": policy.model_copy(update={"path": absolute(policy.path)}) if is_folder else policy,
                "evaluation": evaluation.model_copy(update={"datasets": datasets}),
                "federation": federation.model_copy(update={"server": server}),
                "buffer": buffer.model_copy(update={"order_of": order_of}),
                "output_dir": absolute(self.output_dir),
                "cache_dir": absolute(self.cache_dir),
            }
        )

    def evaluates_after(self, round_number: int) -> bool:
        """Whether the server evaluates the global model of this round on its evaluation sets."""
        return round_number % self.evaluation.frequency == 0 or round_number == self.rounds

    def evaluates_on_clients(self) -> bool:
        """Whether the clients evaluate the global model after some round.

        Not where they share one dataset and the server evaluates on its held-out episodes: the scores would be equal.
        """
        if self.partition is not None and not self.evaluation.used_datasets():
            return False
        return self.evaluation.clients_frequency > 0 and self.data.holdout_episodes > 0

    def evaluates_on_clients_after(self, round_number: int) -> bool:
        """Whether the clients evaluate the global model of this round on their held-out episodes."""
        if not self.evaluates_on_clients():
            return False
        return round_number % self.evaluation.clients_frequency == 0 or round_number == self.rounds

    def rolls_out_after(self, round_number: int) -> bool:
        """Whether the simulator makes attempts with the model of this round."""
        if not self.rollout.tasks:
            return False
        if round_number == 0:
            return self.rollout.base
        frequency = self.rollout.frequency
        return round_number == self.rounds or (frequency > 0 and round_number % frequency == 0)

    def saves_policy_after(self, round_number: int) -> bool:
        """Whether the policy of this round is saved as a LeRobot folder."""
        interval = self.checkpoint_interval
        return round_number > 0 and (round_number == self.rounds or bool(interval and round_number % interval == 0))

    def keeps_weights_of(self, round_number: int) -> bool:
        """Whether the global weights of this round are kept after the next round is recorded."""
        is_end = round_number in (0, self.rounds)
        needed = self.saves_policy_after(round_number) or self.rolls_out_after(round_number)
        return self.keep_weights or is_end or needed

    def renders_videos_after(self, round_number: int) -> bool:
        """Whether videos of this round's rollouts and predictions are rendered."""
        frequency = self.video.frequency
        return round_number == self.rounds or (frequency > 0 and round_number % frequency == 0)

    def evaluation_sets(self) -> tuple[EvaluationSetSettings, ...]:
        """Evaluation sets of the server: the configured ones, else the held-out episodes of a shared dataset."""
        shared = self.partition
        used = self.evaluation.used_datasets()
        if used or shared is None or self.data.holdout_episodes == 0:
            return used
        return (
            EvaluationSetSettings(
                dataset=shared.dataset,
                place=shared.place,
                rename_map=shared.rename_map,
                units=shared.units,
                expected_episodes=shared.expected_episodes,
                last_episodes=self.data.holdout_episodes,
            ),
        )

    def local_clients(self) -> tuple[ClientSettings, ...]:
        """Clients whose datasets this machine reads ([[clients]] or [partition]); none with the deployment engine."""
        shared = self.partition
        if shared is None:
            return self.clients
        return tuple(
            ClientSettings(
                name=f"client_{index}",
                dataset=shared.dataset,
                place=shared.place,
                rename_map=shared.rename_map,
                units=shared.units,
                expected_episodes=shared.expected_episodes,
                partition_index=index,
                partition_count=shared.clients,
            )
            for index in range(shared.clients)
        )

    def client_names(self) -> tuple[str, ...]:
        """Names of all clients, in order; empty: all connected nodes."""
        return self.federation.nodes or tuple(client.name for client in self.local_clients())

    def initial_client_names(self) -> tuple[str, ...]:
        """Names of the clients that take part from round 1 on, in order; empty: all nodes connected by then."""
        return self.federation.nodes or tuple(client.name for client in self.local_clients() if client.from_round == 1)

    def min_clients(self) -> int:
        """Number of clients with which a session begins at least."""
        return max(self.federation.min_updates, self.federation.min_nodes)

    def takes_part(self, client: str, round_number: int) -> bool:
        """Whether a client takes part in this round, according to its `from_round`."""
        return all(one.from_round <= round_number for one in self.local_clients() if one.name == client)

    def accepts_new_clients(self) -> bool:
        """Whether clients may join after round 1."""
        if self.federation.engine == "deployment":
            return self.federation.newcomer_seconds > 0
        return any(client.from_round > 1 for client in self.local_clients())
