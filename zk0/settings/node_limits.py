"""What a node lets a server ask of it, whatever the server's settings say."""

from pydantic import Field

from zk0.records import Record


class NodeLimits(Record):
    """Limits of a node, in `limits.toml` of its folder. A request that breaks one is refused, told and journaled.

    The defaults are far outside of what a normal session asks. They keep an update from being a copy of a few
    frames, and keep a server from occupying the machine.
    """

    secure_only: bool = Field(
        default=False,
        description="send updates in sums only (`federation.secure`), and no score of this node: a server that "
        "announces secure aggregation can otherwise ask for an update by itself",
    )
    min_secure_neighbors: int = Field(
        default=10,
        ge=2,
        description="least clients with which an update shares masks in a secure sum, where the sum has as many: "
        "whoever controls the neighbors of a client can read its update",
    )
    min_batch_frames: int = Field(default=8, ge=1, description="least frames per optimizer step")
    min_round_frames: int = Field(
        default=256,
        ge=1,
        description="least frames per step times steps of a round, whose mean gradient SCAFFOLD sends",
    )
    max_lr: float = Field(default=0.1, gt=0, description="largest learning rate")
    max_mu: float = Field(default=100.0, ge=0, description="largest FedProx mu")
    max_eps: float = Field(
        default=1e-6, gt=0, description="largest AdamW epsilon; a large one turns AdamW into a plain gradient step"
    )
    min_beta: float = Field(default=0.5, ge=0, lt=1, description="least AdamW beta")
    max_beta: float = Field(default=0.9999, gt=0, lt=1, description="largest AdamW beta")
    max_weight_decay: float = Field(default=1.0, ge=0, description="largest AdamW weight decay")
    min_grad_clip_norm: float = Field(
        default=0.01,
        gt=0,
        description="least norm that gradients are clipped to; a small one makes them small beside AdamW's epsilon",
    )
    max_grad_clip_norm: float = Field(default=100.0, gt=0, description="largest norm that gradients are clipped to")
    fixed_session: bool = Field(
        default=True,
        description="seed, data settings, policy, statistics, `every_frames` and `times` stay as in a session's first "
        "request; the scores of two samples of frames would show the frames between them, and those with other "
        "statistics how the recorded actions are distributed",
    )
    fixed_holdout: bool = Field(
        default=True,
        description="hold out the same number of episodes in every session as in the first one; the statistics of two "
        "splits would show the episode between them",
    )
    max_holdout_share: float = Field(
        default=0.5, ge=0, le=1, description="largest share of the episodes that a session may hold out"
    )
    min_statistics_episodes: int = Field(
        default=1,
        ge=1,
        description="least episodes behind the joining statistics; those of one episode are its exact mean and range",
    )
    min_statistics_frames: int = Field(default=10, ge=1, description="least frames behind the joining statistics")
    min_score_frames: int = Field(default=3, ge=1, description="least frames behind the score of an episode")
    policies: tuple[str, ...] = Field(
        default=("tiny", "tiny-act", "tiny-diffusion", "base", "lerobot/smolvla_base"),
        description="`policy.path` of the policies that it may train, `path@revision` where the session sets "
        "`policy.revision`: anybody can propose a revision of a policy on the Hub",
    )
    max_steps: int = Field(default=100_000, ge=1, description="most optimizer steps of a round")
    max_epochs: int = Field(default=100, ge=1, description="most passes over the data in a round")
    max_batch_frames: int = Field(default=4096, ge=1, description="most frames per optimizer step")
    max_round_hours: float = Field(
        default=24.0,
        gt=0,
        description="longest training of a round or for a joining report, longest evaluation with its videos, and "
        "longest recording of a `sim:` dataset",
    )
    max_rounds_per_day: int = Field(
        default=1000,
        ge=1,
        description="most requests of each kind in 24 hours: to join, compute features, train, evaluate, report, "
        "store receipts, or take part in a step of a secure sum",
    )
    max_refusals_per_day: int = Field(
        default=1000,
        ge=1,
        description="requests refused in 24 hours after which it refuses all others without reading them; each refusal "
        "needs about 20 kB of the journal",
    )
    max_baseline_rounds: int = Field(default=1000, ge=1, description="most rounds of the local-only baseline")
    max_threads: int = Field(default=64, ge=1, description="most CPU threads")
    max_disk_gb: float = Field(
        default=100.0,
        gt=0,
        description="largest size of the node's folder with updates, videos and journal, and of the recordings of "
        "`sim:` datasets in its cache, in GB (1e9 bytes), for which it takes requests",
    )
    max_feature_cache_gb: float = Field(default=100.0, gt=0, description="largest size of the feature cache, in GB")
    max_lora_rank: int = Field(default=256, ge=1, description="largest LoRA rank")
    max_lora_dropout: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="largest LoRA dropout; with a large one an update shows few inputs of a matrix at a time",
    )
    max_lora_scaling: float = Field(
        default=64.0,
        gt=0,
        description="largest LoRA scaling, alpha / rank; a large one makes gradients so large that clipping alone "
        "decides them",
    )
    max_times: int = Field(default=64, ge=1, description="most flow-matching times per frame")
    max_videos: int = Field(default=8, ge=0, description="most rendered episodes of an evaluation; 0: none")
    max_video_height: int = Field(default=1080, ge=64, description="largest height of a camera image in a video")
    max_simulated_episodes: int = Field(default=1000, ge=1, description="most episodes of a `sim:` dataset")
    max_image_size: int = Field(default=1024, ge=32, description="largest camera image of a `sim:` dataset, in pixels")
    max_download_gb: float = Field(default=4.0, gt=0, description="largest weights of a request, in GB (1e9 bytes)")
    max_download_hours: float = Field(default=1.0, gt=0, description="longest download of a request")
