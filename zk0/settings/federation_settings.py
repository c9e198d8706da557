"""Settings of the federation: engine, rounds, participation, wire format."""

from typing import Literal

from pydantic import Field

from zk0.records import DigestAlgorithm, Record, WireDtype
from zk0.settings.dataset_settings import SafeName

MAX_CLIENTS_OF_16_BITS = 128
"""Clients whose updates can be summed in words of 16 bits: with more, small changes of a weight are rounded to zero."""


class FederationSettings(Record):
    """How server and clients exchange messages."""

    engine: Literal["local", "ray", "deployment"] = Field(
        default="local",
        description="local: worker processes on this machine; ray: Flower's simulation engine on Ray; deployment: "
        "nodes over the network",
    )
    mode: Literal["synchronous", "buffered"] = Field(
        default="synchronous",
        description="synchronous: the server waits for all clients of a round; buffered: for the first `[buffer]` size "
        "updates, while the other clients go on training (docs/buffered.md)",
    )
    workers: int = Field(
        default=2, ge=0, description="worker processes; 0: clients run in the process of the session (local only)"
    )
    ray_address: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.-]+:[0-9]{1,5}$",
        description="HOST:PORT of a Ray cluster that is running; its machines need no common folder, and Ray decides "
        "how many clients train at a time; unset: Ray is started on this machine (ray only)",
    )
    secure: bool = Field(
        default=False,
        description="secure aggregation: clients mask updates, so that the server learns their sum and no single one "
        "(docs/secure-aggregation.md)",
    )
    secure_neighbors: int | None = Field(
        default=None,
        ge=2,
        le=10_000,
        multiple_of=2,
        description="secure aggregation: clients with which each client shares masks, where there are more; fewer than "
        "all cost less time, and then not any third of the clients may drop out; unset: all others",
    )
    secure_bits: Literal[16, 32] = Field(
        default=16,
        description="secure aggregation: bits of a weight's change on the wire; 16 is twice the bytes of int8, and for "
        f"at most {MAX_CLIENTS_OF_16_BITS} clients in a round",
    )
    min_updates: int = Field(default=2, ge=1, description="minimum number of good updates in a round")
    fraction_fit: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="fraction of the clients that are sampled for a round; at least min_updates clients",
    )
    round_timeout_seconds: float = Field(
        default=3600.0,
        gt=0,
        description="time limit for a client's update, without its wait for a worker or a GPU; a late one is left out "
        "of the round. Nodes that may share a GPU (deployment; not with training.device cpu) have this time from the "
        "round's last answer on",
    )
    feature_timeout_seconds: float = Field(
        default=14_400.0,
        gt=0,
        description="time limit for computing the features of a client's frames, before the first round; a late client "
        "computes the rest in its rounds",
    )
    round_retries: int = Field(
        default=1,
        ge=0,
        description="retries of a round with too few good updates; updates that arrived before are reused",
    )
    wire: WireDtype = Field(
        default="fp32",
        description="upload format: fp32 sends weights, bf16 and int8 send deltas in 1/2 and 1/4 of the bytes",
    )
    wire_down: WireDtype = Field(
        default="fp32", description="download format of the global weights; the server's own copy stays float32"
    )
    compress: bool = Field(
        default=False, description="clients compress their uploads without loss, for slow connections"
    )
    digest: DigestAlgorithm = Field(
        default="blake3",
        description="digest of the weights that server and clients exchange, and of their records; blake3 is faster",
    )
    server: str = Field(default="~/.zk0/server", description="folder of `zk0bot server init` (deployment only)")
    nodes: tuple[SafeName, ...] = Field(
        default=(),
        description="names of the enrolled nodes to use; empty: all connected nodes. One that is away, silent or "
        "refuses when the session begins is left out while min_nodes and min_updates remain (deployment only)",
    )
    min_nodes: int = Field(
        default=1,
        ge=1,
        description="minimum number of nodes with which a session begins, where that is more than min_updates "
        "(deployment only)",
    )
    absence_seconds: float = Field(
        default=300.0,
        ge=0,
        description="how long a round, or the beginning of a session, waits for a node that is unreachable "
        "(deployment only)",
    )
    newcomer_seconds: float = Field(
        default=120.0,
        ge=0,
        description="how long a round waits for newly connected nodes to check their dataset and join; 0: new nodes do "
        "not join a running session (deployment only)",
    )
