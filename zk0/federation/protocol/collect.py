"""Send plans to the clients of a session and collect their answers: the same on every engine.

Each answer is spooled to disk as it arrives, and refused where it is invalid. When a round is retried, only clients
without a spooled update get a request, and a client that has trained already answers from its own disk. So a retry
never repeats finished work.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from flwr.app import MessageType, RecordDict

from zk0.audit.ledger_heads import MAX_HEADS
from zk0.audit.merkle import Receipt
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.exchange import FEATURES, JOINING_REPORT, LOCAL_BASELINE, RECEIPTS, Reply, Request
from zk0.federation.protocol.membership import Membership
from zk0.federation.protocol.replies import (
    CollectedScores,
    CollectedUpdates,
    EvaluationAttempt,
    ResultListener,
    SilentListener,
    parse_report,
    parse_score,
)
from zk0.federation.protocol.spool import JoinedWith, Spool
from zk0.records import Refusal, Update
from zk0.settings.plans import ClientPlan, EvaluationPlan, FeaturePlan, JoiningReportPlan, RoundPlan, SessionTerms


class Federation(Membership):
    """The clients of one session, connected by one engine: they join, train, evaluate and receive receipts."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._evaluation = EvaluationAttempt()

    def compute_features(self, plans: Sequence[FeaturePlan]) -> tuple[Refusal, ...]:
        """Let clients compute the features of their frames, and return the refusals of those that did not.

        A client that did not computes them in its rounds.

        Raises:
            TransientError: clients refuse for reasons that may pass; the next call takes the refusals of these.
        """
        return self._request_without_result(
            self._requests(plans, None), FEATURES, plans[0].round, self._feature_timeout
        )

    def train(
        self,
        plans: Sequence[RoundPlan],
        weights: Path,
        spool: Path,
        listener: ResultListener | None = None,
        sent_weights: Path | None = None,
    ) -> CollectedUpdates:
        """Let clients train on their plans, and return the accepted updates and the refusals.

        Args:
            plans: one for each client of the round.
            weights: file of the global weights.
            spool: folder for the updates.
            listener: called before each request and after each answer.
            sent_weights: file that is sent to the clients; None: `weights`.
        """
        plan_of = {plan.client: plan for plan in plans}
        members = self._registry.members
        joined = {name: JoinedWith.of(members[name]) for name in plan_of if name in members}
        spooled, listener = Spool(spool, weights, joined), listener or SilentListener()
        updates = {name: u for name, plan in plan_of.items() if (u := spooled.load(plan)) is not None}
        refusals: list[Refusal] = []
        for update in updates.values():
            listener.on_reused(update)
        missing = [plan for name, plan in plan_of.items() if name not in updates]
        requests = self._requests(missing, sent_weights or weights)
        for name in requests:
            listener.on_request(name)
        with closing(self._exchange(requests, MessageType.TRAIN, str(plans[0].round))) as replies:
            for reply in replies:
                if reply.content is None:
                    found: Update | Refusal = spooled.refuse(reply.sender, reply.error)
                else:
                    found = spooled.receive(reply.content, plan_of[reply.sender], updates.keys())
                if isinstance(found, Refusal):
                    refusals.append(found)
                    self._log.record(reply, ("train", plans[0].round), refusal=found.reason)
                else:
                    updates[reply.sender] = found
                    self._log.record(reply, ("train", plans[0].round), update=found)
                if not reply.unexpected:
                    listener.on_result(found)
        return CollectedUpdates(
            updates=tuple(updates[n] for n in sorted(updates)),
            refusals=_sorted(refusals),
            all_refusals=spooled.refusals(),
            delta_norms={n: spooled.delta_norms[n] for n in sorted(updates)},
        )

    def record_quarantined(self, refusals: Sequence[Refusal], round_number: int) -> None:
        """Record that updates are refused after they had been accepted."""
        self.record_refused(refusals, "quarantine", round_number)

    def record_refused(self, refusals: Sequence[Refusal], kind: str, round_number: int | None) -> None:
        """Record that answers of a kind are refused after they had been accepted."""
        for refusal in refusals:
            self._log.record(Reply(refusal.client, None), (kind, round_number), refusal=refusal.reason)

    def evaluate(
        self, plans: Sequence[EvaluationPlan], weights: Path, listener: ResultListener | None = None
    ) -> CollectedScores:
        """Let clients evaluate the weights in a file on their held-out episodes, and return scores and refusals.

        Raises:
            TransientError: clients refuse for reasons that may pass. The next call for this model asks only the
                clients without a score, and takes the refusals of those that it asks again.
        """
        listener = listener or SilentListener()
        model = frozenset((plan.round, plan.global_digest) for plan in plans)
        if self._evaluation.model != model:
            self._evaluation = EvaluationAttempt(model)
        scores = self._evaluation.scores
        for score in scores.values():
            listener.on_reused(score)
        requests = self._requests([plan for plan in plans if plan.client not in scores], weights)
        for name in requests:
            listener.on_request(name)
        may_be_personal = any(plan.recipe.personal for plan in plans)
        refusals, passing = list[Refusal](), dict[str, str]()
        for reply in self._exchange(requests, MessageType.EVALUATE, "evaluate"):
            if reply.unexpected:  # the first answer counts, and the weights are the same
                continue
            found = parse_score(reply, self._registry.members.get(reply.sender), may_be_personal=may_be_personal)
            if isinstance(found, Refusal):
                refusals.append(found)
                passing |= {reply.sender: reply.error} if reply.may_pass else {}
                self._log.record(reply, ("evaluate", plans[0].round), refusal=found.reason)
            else:
                scores[found.client] = found
                self._log.record(reply, ("evaluate", plans[0].round))
            listener.on_result(found)
        self._ask_again(f"evaluate round {plans[0].round}" if plans else "", passing)
        self._evaluation = EvaluationAttempt()
        return CollectedScores(scores=tuple(scores[n] for n in sorted(scores)), refusals=_sorted(refusals))

    def collect_joining_reports(
        self, plans: tuple[Sequence[JoiningReportPlan], Sequence[JoiningReportPlan]], base: Path, final: Path
    ) -> tuple[dict[str, str], tuple[Refusal, ...]]:
        """Let clients measure what joining brought them.

        Args:
            plans: for the base weights and for the final weights, one for each client.
            base: file of the weights that the session started from.
            final: file of the last global weights.

        Returns:
            The report (JSON) of each client, empty where a client does not share it, and the refusals.

        Raises:
            TransientError: clients refuse for reasons that may pass; the next call takes the refusals of these.
        """
        refused: dict[str, Refusal] = {}
        found: dict[str, str] = {}
        passing: dict[str, str] = {}
        for part, weights, action in ((plans[0], base, LOCAL_BASELINE), (plans[1], final, JOINING_REPORT)):
            requests = self._requests([plan for plan in part if plan.client not in refused], weights)
            rounds = {plan.client: len(plan.lrs) for plan in part}
            for reply in self._exchange(requests, f"{MessageType.EVALUATE}.{action}", action):
                if reply.unexpected:  # the first answer counts
                    continue
                report = self._joining_report(reply, rounds[reply.sender] if action == JOINING_REPORT else None)
                error = report.reason if isinstance(report, Refusal) else ""
                self._log.record(reply, (action, part[0].round), refusal=error)
                if isinstance(report, Refusal):
                    refused[reply.sender] = report
                    passing |= {reply.sender: reply.error} if reply.may_pass else {}
                elif action == JOINING_REPORT:
                    found[reply.sender] = report
        self._ask_again("measure what joining brought them", passing)
        return found, tuple(refused[name] for name in sorted(refused))

    def _joining_report(self, reply: Reply, rounds: int | None) -> str | Refusal:
        """Return the joining report in a reply, or a refusal; empty for the first part of the work (no `rounds`)."""
        if reply.content is None:
            return Refusal(client=reply.sender, reason=reply.error)
        if rounds is None:
            return ""
        return parse_report(reply.sender, reply.content, self._registry.members[reply.sender], rounds)

    def send_receipts(self, terms: SessionTerms, receipts: Mapping[str, Sequence[Receipt]]) -> tuple[Refusal, ...]:
        """Send clients the receipts of their updates, and return the refusals of those that did not accept them.

        Raises:
            TransientError: clients refuse for reasons that may pass; the next call takes the refusals of these.
        """
        requests, heads = {}, self._shown_heads(newest=MAX_HEADS)
        for name, those in receipts.items():
            text = json.dumps([receipt.model_dump(mode="json") for receipt in those])
            content = RecordDict({"config": self._config(terms=terms.model_dump_json(), receipts=text, **heads)})
            requests[name] = (self._registry.node_of(name), content)
        return self._request_without_result(requests, RECEIPTS, None, self._timeout)

    def _request_without_result(
        self, requests: Mapping[str, Request], action: str, round_number: int | None, timeout_seconds: float
    ) -> tuple[Refusal, ...]:
        """Send queries whose answers hold no result, and return the refusals."""
        exchange = self._exchange(requests, f"{MessageType.QUERY}.{action}", action, timeout_seconds)
        replies = [reply for reply in exchange if not reply.unexpected]
        for reply in replies:
            self._log.record(reply, (action, round_number), refusal=reply.error)
        self._ask_again(f"take part in {action}", {reply.sender: reply.error for reply in replies if reply.may_pass})
        return _sorted([Refusal(client=r.sender, reason=r.error) for r in replies if r.content is None])

    def _requests(self, plans: Sequence[ClientPlan], weights: Path | None) -> dict[str, Request]:
        """Return one request for each plan, by client, with the weights in a file unless None."""
        file = {} if weights is None else {WEIGHTS_PATH: str(weights)}
        requests = {}
        for plan in plans:
            heads = self._shown_heads(newest=1, lines=plan.round) if isinstance(plan, RoundPlan) else {}
            config = self._config(plan=plan.model_dump_json(), **file, **heads)
            requests[plan.client] = (self._registry.node_of(plan.client), RecordDict({"config": config}))
        return requests


def _sorted(refusals: Sequence[Refusal]) -> tuple[Refusal, ...]:
    return tuple(sorted(refusals, key=lambda refusal: refusal.client))
