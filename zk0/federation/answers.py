"""What clients have answered, sorted into good and refused."""

from typing import Protocol

from pydantic import ValidationError

from zk0.federation.exchange import Reply
from zk0.federation.spool import first_line
from zk0.records import ClientScore, Record, Refusal, Update


class Collected(Record):
    """What came back in one round: good updates and refusals, each in the order of client names."""

    updates: tuple[Update, ...]
    refusals: tuple[Refusal, ...]
    """Of this attempt."""
    all_refusals: tuple[Refusal, ...]
    """Of this attempt and those before it."""
    step_norms: dict[str, float]
    """How far each good update lies from the weights of the round's beginning (L2), by client."""


class Judged(Record):
    """What clients say of a model, in the order of their names."""

    scores: tuple[ClientScore, ...]
    refusals: tuple[Refusal, ...]


class Listener(Protocol):
    """Is told what becomes of each client whose part a round or a judging waits for."""

    def asked(self, client: str) -> None:
        """It is about to be asked."""

    def kept(self, update: Update) -> None:
        """It is not asked: an earlier attempt has brought this."""

    def answered(self, found: Update | ClientScore | Refusal) -> None:
        """It was asked and is done with."""


class Nobody:
    """Does not listen."""

    def asked(self, client: str) -> None: ...
    def kept(self, update: Update) -> None: ...
    def answered(self, found: Update | ClientScore | Refusal) -> None: ...


def score_of(reply: Reply) -> ClientScore | Refusal:
    """The score in an answer, or why there is none."""
    if reply.content is None:
        return Refusal(client=reply.name, reason=reply.fault)
    try:
        found = ClientScore.model_validate_json(str(reply.content["answer"]["score"]))
    except (KeyError, ValidationError) as e:
        return Refusal(client=reply.name, reason=f"an answer that is no score ({first_line(e)})")
    if found.client != reply.name:
        return Refusal(client=reply.name, reason=f"answers as {found.client}")
    return found
