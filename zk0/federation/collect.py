"""Send plans out, spool each answer to disk as it arrives, refuse bad ones: the same on every engine.

Called again for the same round, only clients without a spooled answer are asked; and a client that is asked
again answers from its own disk. So a retry never repeats finished work.
"""

import json
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from flwr.app import ConfigRecord, MessageType, RecordDict
from loguru import logger

from zk0.errors import FederationError
from zk0.federation.accepted import AcceptedLog
from zk0.federation.answers import Collected, Judged, Listener, Nobody, score_of
from zk0.federation.exchange import POLL_SECONDS, Grid, Question, Reply, ask
from zk0.federation.roll import NOBODY, Roll
from zk0.federation.sent import WEIGHTS_PATH
from zk0.federation.spool import Spool
from zk0.merkle import Receipt
from zk0.records import ClientScore, Member, Refusal, Update
from zk0.session import EvaluationPlan, JoiningPlan, Plan, RoundPlan, Terms


class Federation:
    """The clients of one session, behind one engine.

    Args:
        grid: the engine.
        clients: names of the clients that are expected.
        timeout_seconds: for one round, and for joining.
        nodes_file: on simulated engines, where a node finds its configuration.
        least: how many must join where `clients` is empty, and whoever is connected takes part.
        log: where answers are written down.
    """

    def __init__(
        self,
        grid: Grid,
        clients: Sequence[str],
        timeout_seconds: float,
        nodes_file: Path | None = None,
        least: int = 1,
        log: AcceptedLog | None = None,
    ) -> None:
        self._grid = grid
        self._clients = tuple(clients)
        self._timeout = timeout_seconds
        self._nodes_file = nodes_file
        self._enough, self._least = least, len(self._clients) or least
        self._roll = Roll()
        self._log = log or AcceptedLog(None, "")

    def join(
        self, terms: Terms, remembered: Sequence[Member] = (), patience_seconds: float = 0.0
    ) -> tuple[Member, ...]:
        """Every client's answer to the terms, in the order the session names them, or else of their names.

        Clients that are `remembered` from before the session was interrupted are waited for with that patience; then
        it goes on without those that are missing, and they are refused in each round until `welcome` finds them.

        Raises:
            FederationError: a client did not answer, or may not take part; says why for each.
        """
        self._roll = Roll()
        nodes = self._wait_for_nodes(patience_seconds if remembered else None)
        faults, members = self._call_the_roll(nodes, terms, self._timeout), self._roll.members
        if len(members) >= self._enough:
            self._roll.remember([one for one in remembered if one.client not in members])
        if faults and not remembered and (self._clients or len(members) < self._least):
            raise FederationError(
                f"{len(faults)} of {len(nodes)} clients cannot take part: " + "; ".join(sorted(faults))
            )
        for fault in faults:
            logger.warning("does not take part: {}", fault)
        if missing := sorted(set(self._clients) - members.keys()):
            raise FederationError(
                f"clients that did not join: {', '.join(missing)}; expected {', '.join(self._clients)}"
            )
        return tuple(members[name] for name in self._clients or sorted(members))

    def welcome(self, terms: Terms, seconds: float) -> tuple[Member, ...]:
        """Everyone who has joined, in the order of their names, after nodes that have come since were asked to.

        A node that does not answer within `seconds`, or may not take part, is asked again by the next call.
        """
        nodes = self._roll.strangers(self._grid.get_nodes())
        for fault in self._call_the_roll(nodes, terms, seconds):
            logger.warning("does not take part: {}", fault)
        return tuple(self._roll.members[name] for name in sorted(self._roll.members))

    def _call_the_roll(self, nodes: Mapping[int, str], terms: Terms, seconds: float) -> list[str]:
        """Ask nodes to join; why some cannot."""
        content = RecordDict({"config": self._config(terms=terms.model_dump_json())})
        questions = {str(node): (node, content) for node in nodes}
        replies = ask(self._grid, questions, MessageType.QUERY, "join", seconds)
        faults = []
        for reply in (reply for reply in replies if not reply.extra):
            fault = self._roll.take(reply, int(reply.name), nodes)
            client = self._roll.client(int(reply.name)) or nodes[int(reply.name)]
            self._log.note(reply, ("join", None), client, why=fault)
            faults += [fault] if fault else []
        return faults

    def train(
        self,
        plans: Sequence[RoundPlan],
        weights: Path,
        spool: Path,
        listener: Listener | None = None,
        sent: Path | None = None,
    ) -> Collected:
        """Let clients train on their plans from the weights in a file; answers lie in `spool` afterwards.

        `listener` is told of each client as it is asked and as it is done with, whether its update is good or refused;
        `sent` is the file that clients get, where it is not the weights themselves.
        """
        lies, told = Spool(spool, weights), listener or Nobody()
        plans_of = {plan.client: plan for plan in plans}
        updates = {name: u for name, plan in plans_of.items() if (u := lies.kept(plan)) is not None}
        refusals: list[Refusal] = []
        for update in updates.values():
            told.kept(update)
        questions = {
            name: (self._node(name), self._content(plan, sent or weights))
            for name, plan in plans_of.items()
            if name not in updates
        }
        for name in questions:
            told.asked(name)
        with closing(self._ask(questions, MessageType.TRAIN, str(plans[0].round))) as replies:
            for reply in replies:
                if reply.content is None:
                    taken: Update | Refusal = lies.refuse(reply.name, reply.fault)
                else:
                    taken = lies.take(reply.content, plans_of[reply.name], updates.keys())
                asked = "train", plans[0].round
                if isinstance(taken, Refusal):
                    refusals.append(taken)
                    self._log.note(reply, asked, why=taken.reason)
                else:
                    updates[reply.name] = taken
                    self._log.note(reply, asked, taken=taken)
                if not reply.extra:
                    told.answered(taken)
        return Collected(
            updates=tuple(updates[n] for n in sorted(updates)),
            refusals=tuple(sorted(refusals, key=lambda r: r.client)),
            all_refusals=lies.refusals(),
            step_norms={n: lies.step_norms[n] for n in sorted(updates)},
        )

    def put_aside(self, refusals: Sequence[Refusal], round_number: int) -> None:
        """Write down that updates which had been taken are refused after all."""
        for refusal in refusals:
            self._log.note(Reply(refusal.client, None), ("quarantine", round_number), why=refusal.reason)

    def evaluate(self, plans: Sequence[EvaluationPlan], weights: Path, listener: Listener | None = None) -> Judged:
        """Let clients judge the weights in a file on what they hold out; who cannot is refused with the reason."""
        told = listener or Nobody()
        questions = {plan.client: (self._node(plan.client), self._content(plan, weights)) for plan in plans}
        scores: dict[str, ClientScore] = {}
        refusals: list[Refusal] = []
        for name in questions:
            told.asked(name)
        for reply in self._ask(questions, MessageType.EVALUATE, "evaluate"):
            if reply.extra:  # the first answer counts, and the weights are the same
                continue
            found = score_of(reply)
            why = found.reason if isinstance(found, Refusal) else ""
            self._log.note(reply, ("evaluate", plans[0].round), why=why)
            if isinstance(found, Refusal):
                refusals.append(found)
            else:
                scores[found.client] = found
            told.answered(found)
        return Judged(
            scores=tuple(scores[n] for n in sorted(scores)), refusals=tuple(sorted(refusals, key=lambda r: r.client))
        )

    def report_joining(
        self, plans: tuple[Sequence[JoiningPlan], Sequence[JoiningPlan]], base: Path, final: Path
    ) -> tuple[dict[str, str], tuple[Refusal, ...]]:
        """Let clients find out what joining has brought them, with plans for the base and for the final weights.

        The reports (JSON) of those who share theirs, empty for those who do not, and who could not make one.
        """
        refused: dict[str, Refusal] = {}
        found: dict[str, str] = {}
        for part, weights, action in ((plans[0], base, "alone"), (plans[1], final, "joined")):
            asked = [plan for plan in part if plan.client not in refused]
            questions = {plan.client: (self._node(plan.client), self._content(plan, weights)) for plan in asked}
            for reply in self._ask(questions, f"{MessageType.EVALUATE}.{action}", action):
                self._log.note(reply, (action, part[0].round), why=reply.fault)
                if reply.content is None:
                    refused[reply.name] = Refusal(client=reply.name, reason=reply.fault)
                elif action == "joined" and not reply.extra:
                    found[reply.name] = str(reply.content["answer"]["joining"])
        return found, tuple(refused[name] for name in sorted(refused))

    def give_receipts(self, terms: Terms, receipts: Mapping[str, Sequence[Receipt]]) -> tuple[Refusal, ...]:
        """Tell clients how to prove that they were averaged; who did not take the receipts, and why."""
        questions = {}
        for name, those in receipts.items():
            text = json.dumps([one.model_dump(mode="json") for one in those])
            content = RecordDict({"config": self._config(terms=terms.model_dump_json(), receipts=text)})
            questions[name] = (self._node(name), content)
        kind = f"{MessageType.QUERY}.receipts"
        replies = [reply for reply in self._ask(questions, kind, "receipts") if not reply.extra]
        for reply in replies:
            self._log.note(reply, ("receipts", None), why=reply.fault)
        refused = [Refusal(client=reply.name, reason=reply.fault) for reply in replies if reply.content is None]
        return tuple(sorted(refused, key=lambda refusal: refusal.client))

    def _wait_for_nodes(self, patience_seconds: float | None = None) -> dict[int, str]:
        """The nodes that are there, once they are enough, and the names they were enrolled under, if they were.

        With `patience_seconds`, all that are expected are waited for only so long, and then as few as a round needs.
        """
        started = time.monotonic()
        deadline = started + self._timeout
        while len(nodes := self._roll.strangers(self._grid.get_nodes(), self._clients)) < self._least:
            patient = patience_seconds is None or time.monotonic() < started + patience_seconds
            if not patient and len(nodes) >= self._enough:
                return nodes
            if time.monotonic() > deadline:
                here = f" ({', '.join(sorted(nodes.values()))})" if any(nodes.values()) else ""
                raise FederationError(f"{len(nodes)} nodes{here} after {self._timeout:g} s, expected {self._least}")
            time.sleep(POLL_SECONDS)
        return nodes

    def _node(self, client: str) -> int:
        return self._roll.node(client)

    def _config(self, **values: str) -> ConfigRecord:
        return ConfigRecord({**values, **({"nodes": str(self._nodes_file)} if self._nodes_file else {})})

    def _content(self, plan: Plan, weights: Path) -> RecordDict:
        return RecordDict({"config": self._config(plan=plan.model_dump_json(), **{WEIGHTS_PATH: str(weights)})})

    def _ask(self, questions: Mapping[str, Question], kind: str, group: str) -> Generator[Reply]:
        there = {name: question for name, question in questions.items() if question[0] != NOBODY}
        for name in questions.keys() - there.keys():
            yield Reply(name, None, "its node has not come back since the session was interrupted")
        yield from ask(self._grid, there, kind, group, self._timeout)
