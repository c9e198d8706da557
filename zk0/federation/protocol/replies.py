"""Results of a round or an evaluation: the clients' valid answers, and refusals with their reasons."""

from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import RecordDict
from pydantic import ValidationError

from zk0.errors import FederationError, first_line
from zk0.federation.protocol.answers import REPORT, SCORE, answered_text, parse_answer
from zk0.federation.protocol.exchange import Reply
from zk0.federation.protocol.score_rules import report_faults, score_faults
from zk0.records import ClientScore, Member, Record, Refusal, Update
from zk0.secure.messages import MaskedUpdate
from zk0.stats.joining_comparison import JoiningReport


class CollectedUpdates(Record):
    """The updates and refusals of one round, each in the order of client names."""

    updates: tuple[Update, ...]
    refusals: tuple[Refusal, ...]
    """Of this attempt."""
    all_refusals: tuple[Refusal, ...]
    """Of this attempt and those before it."""
    delta_norms: dict[str, float]
    """L2 norm of each update minus the global weights that the round started from, by client."""


class CollectedScores(Record):
    """The clients' scores of a model, and refusals, each in the order of client names."""

    scores: tuple[ClientScore, ...]
    refusals: tuple[Refusal, ...]


@dataclass
class EvaluationAttempt:
    """The scores so far of an evaluation, for which some clients are asked once more."""

    model: frozenset[tuple[int, str]] = frozenset()
    """Round, and digest of the weights."""
    scores: dict[str, ClientScore] = field(default_factory=dict)


class ResultListener(Protocol):
    """Callbacks about each client of a round or an evaluation."""

    def on_request(self, client: str) -> None:
        """Called before the request is sent."""

    def on_reused(self, found: Update | ClientScore) -> None:
        """Called where no request is sent, because an earlier attempt has brought this result."""

    def on_result(self, found: Update | ClientScore | MaskedUpdate | Refusal) -> None:
        """Called when the client's answer is accepted or refused."""


class SilentListener:
    """A ResultListener that does nothing."""

    def on_request(self, client: str) -> None: ...
    def on_reused(self, found: Update | ClientScore) -> None: ...
    def on_result(self, found: Update | ClientScore | MaskedUpdate | Refusal) -> None: ...


def parse_score(reply: Reply, member: Member | None = None, *, may_be_personal: bool = True) -> ClientScore | Refusal:
    """Return the score in a reply, or a refusal with the reason why there is none.

    Args:
        reply: of a client.
        member: the client's joining answer, whose held-out episodes are evaluated, and under whose dataset the score is
            recorded; None: this is not checked.
        may_be_personal: whether the client may have a policy of its own, which is scored, too.
    """
    if reply.content is None:
        return Refusal(client=reply.sender, reason=reply.error)
    try:
        found = parse_answer(reply.content, SCORE, ClientScore)
    except FederationError as e:
        return Refusal(client=reply.sender, reason=str(e))
    if found.client != reply.sender:
        return Refusal(client=reply.sender, reason=f"its answer names client {found.client}")
    if found.personal is not None and not may_be_personal:
        return Refusal(
            client=reply.sender, reason="it scores a policy of its own, and the plan has no personal parameters"
        )
    if member is None:
        return found
    scores = {name: one for name in ("score", "personal") if (one := getattr(found, name)) is not None}
    if faults := [fault for score in scores.values() for fault in score_faults(score, member)]:
        return Refusal(client=reply.sender, reason=f"its score is not that of its episodes: {'; '.join(faults)}")
    renamed = {name: score.model_copy(update={"dataset": member.dataset}) for name, score in scores.items()}
    return found.model_copy(update=renamed)


def parse_report(client: str, content: RecordDict, member: Member, rounds: int) -> str | Refusal:
    """Return the joining report in an answer as JSON, empty where the client does not share it, or a refusal.

    Args:
        client: that has answered.
        content: of its answer.
        member: the client's joining answer, whose held-out episodes are evaluated, and under whose dataset the report
            is recorded.
        rounds: of the session.
    """
    try:
        if not (text := answered_text(content, REPORT)):
            return ""
        report = JoiningReport.model_validate_json(text)
    except FederationError as e:
        return Refusal(client=client, reason=str(e))
    except ValidationError as e:
        return Refusal(client=client, reason=f"its answer is not {REPORT.name} ({first_line(e)})")
    if report.client != client:
        return Refusal(client=client, reason=f"its report names client {report.client}")
    if faults := report_faults(report, member, rounds):
        return Refusal(client=client, reason=f"its report is not that of its episodes: {'; '.join(faults)}")
    models = {name: score.model_copy(update={"dataset": member.dataset}) for name, score in report.models.items()}
    return report.model_copy(update={"dataset": member.dataset, "models": models}).model_dump_json()
