"""Settings of buffered asynchronous rounds: the buffer, and how much an update counts that began from older weights."""

from typing import Annotated, Literal

from pydantic import Field

from zk0.records import Record


class BufferSettings(Record):
    """When the server steps with `federation.mode = "buffered"`, and how much late updates count (docs/buffered.md)."""

    size: int = Field(
        default=2, ge=1, description="updates that the server waits for before it steps, each of another client"
    )
    concurrency: int | None = Field(
        default=None, ge=1, description="clients that train at a time; unset: all that are not in the buffer"
    )
    max_staleness: int = Field(
        default=20,
        ge=0,
        description="an update is refused if the server has taken more steps than this since its client was sent the "
        "weights; the client gets the newest weights",
    )
    max_stale_updates: int = Field(
        default=0, ge=0, description="updates of a buffer that may exceed max_staleness all the same"
    )
    staleness: Literal["constant", "polynomial"] = Field(
        default="polynomial",
        description="factor for the delta of an update that is s server steps old; constant: 1, polynomial: "
        "(1 + s) ** -staleness_exponent",
    )
    staleness_exponent: float = Field(
        default=0.5, gt=0, description="exponent of the polynomial; 0.5 is that of FedAsync and FedBuff"
    )
    simulated_seconds: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="virtual clock: seconds that each client's training takes, by name; updates then arrive in the "
        "order of this clock, whatever the machine needs for them; empty: in the order in which they are there",
    )
    order_of: str | None = Field(
        default=None,
        description="folder of a session whose order of arrivals is repeated (`zk0 run --from` sets it); unset: none",
    )
