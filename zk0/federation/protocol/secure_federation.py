"""Rounds with secure aggregation: five messages to the clients, after which the server has the sum of their updates.

The first one is the request to train, answered with keys; then shares, masked updates, consents, and the shares that
remove the masks. A client that does not answer one of them has dropped out. All that has arrived is on disk: a retry,
or a session that resumes, asks only for what is missing, and a client gives to a question that comes again the answer
that it gave before. Masking begins once in a round: from then on the roster stays, so that no update is masked twice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from flwr.app import MessageType, RecordDict
from loguru import logger

from zk0.errors import CheckpointError, FederationError, RoundIncomplete, UpdateError
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.answers import ADVERT, CONSENT, MASKED, REVEALED, SEALED, AnswerForm, parse_answer
from zk0.federation.protocol.collect import Federation
from zk0.federation.protocol.exchange import (
    ANSWER_BYTES,
    SECURE,
    SECURE_CONSENT,
    SECURE_MASK,
    SECURE_REVEAL,
    SECURE_SHARES,
    Reply,
)
from zk0.federation.protocol.replies import ResultListener, SilentListener
from zk0.federation.protocol.secure_spool import SecureSpool, SharedSecrets
from zk0.federation.protocol.spool import Spool
from zk0.records import SUM_NAME, Record, Refusal, Update
from zk0.secure.messages import (
    LEAST_CLIENTS,
    Consent,
    KeyAdvert,
    MaskedUpdate,
    RevealedShares,
    Roster,
    SealedShares,
    SecureRound,
    SumRequest,
    UnmaskingRequest,
    threshold_of,
)
from zk0.secure.unmasking import (
    check_advert,
    check_consent,
    check_revealed,
    check_sealed,
    has_enough,
    masking_request,
    remaining_masks,
    save_sum,
    summed_updates,
)
from zk0.settings.plans import RoundPlan
from zk0.weights.digests import algorithm_of
from zk0.weights.fixed_point import decode_metrics, false_metrics


class CollectedSum(Record):
    """The sum of a round, and refusals in the order of client names."""

    sum: Update
    refusals: tuple[Refusal, ...]
    """Of all attempts."""


class SecureFederation(Federation):
    """A federation whose rounds bring a sum of updates."""

    def train_secure(
        self,
        plans: Sequence[RoundPlan],
        weights: Path,
        spool: Path,
        listener: ResultListener | None = None,
        sent_weights: Path | None = None,
    ) -> CollectedSum:
        """Let clients train on their plans and mask their updates, and return the sum.

        Args:
            plans: one for each client of the round.
            weights: file of the global weights.
            spool: folder for the updates.
            listener: called before each request, and when a client has sent its masked update or dropped out.
            sent_weights: file that is sent to the clients; None: `weights`.

        Raises:
            RoundIncomplete: too few clients have answered a message.
            FederationError: a client has sent shares of something else than it has announced.
        """
        found = _SecureRoundRun(self, plans, (weights, sent_weights or weights), spool, listener or SilentListener())
        return CollectedSum(sum=found.run(), refusals=found.refusals.refusals())

    def ask(
        self,
        plans: Sequence[RoundPlan],
        message_type: str,
        requests: Mapping[str, Record | None],
        files: tuple[Path | None, int],
    ) -> Iterator[Reply]:
        """Send plans with a record for each client, and yield the replies that are expected as they arrive.

        Args:
            plans: of the clients.
            message_type: of the request.
            requests: what goes with the plan, by client.
            files: file of weights that is sent, and the size of the file that comes with the answer to a record.
        """
        contents = self._requests(plans, files[0])
        for name, record in requests.items():
            if record is not None:
                config = contents[name][1].config_records["config"]
                config[SECURE], config[ANSWER_BYTES] = record.model_dump_json(), files[1]
        group = f"{plans[0].round} {message_type}"
        return (reply for reply in self._exchange(contents, message_type, group) if not reply.unexpected)

    def log_reply(self, reply: Reply, message_type: str, number: int, refusal: str = "") -> None:
        """Write a reply to the server's journal."""
        self._log.record(reply, (message_type.rpartition(".")[2], number), refusal=refusal)

    @property
    def min_clients(self) -> int:
        """The least number of updates in a sum (`federation.min_updates`); two thirds of the clients in any case."""
        return self._min_clients

    @cached_property
    def node_keys(self) -> dict[str, str]:
        """The public key of each client's node, as it was first announced in this session's process."""
        return {}

    def training_frames(self, client: str) -> int | None:
        """Return the training frames of a client's joining answer; None where it has not joined."""
        member = self._registry.members.get(client)
        return member.train_frames if member else None


class _SecureRoundRun:
    """One attempt at the sum of a round."""

    def __init__(
        self,
        federation: SecureFederation,
        plans: Sequence[RoundPlan],
        weights: tuple[Path, Path],
        spool: Path,
        listener: ResultListener,
    ) -> None:
        self._federation, self._weights, self._listener = federation, weights, listener
        self._plans = {plan.client: plan for plan in plans}
        if SUM_NAME in self._plans:
            raise FederationError(f"a client is named {SUM_NAME}, as the record of the sum; give it another name")
        self._common = SecureRound.of(plans[0])
        if any(SecureRound.of(plan) != self._common for plan in plans):
            raise FederationError("the plans of a sum differ in round, weights or rules")
        self._spool = SecureSpool(spool, weights[0])
        self.refusals = Spool(spool, weights[0])
        self._reasons: dict[str, str] = {}
        self._asked = set[str]()

    def run(self) -> Update:
        """Return the sum."""
        if found := self._spool.read_sum():
            return found
        secrets = self._spool.read_secrets()
        if secrets is None or secrets.roster.common != self._common:
            secrets = self._share_secrets()
        survivors = self._spool.read_survivors()
        if survivors is None or survivors.roster != secrets.roster.digest:
            survivors = self._collect_masked(secrets)
        return self._open(secrets.roster, survivors)

    def _share_secrets(self) -> SharedSecrets:
        """Let clients train and announce keys, then share their secrets."""
        adverts = self._ask(ADVERT, KeyAdvert, MessageType.TRAIN, dict.fromkeys(self._plans), self._check_advert)
        least = max(LEAST_CLIENTS, self._federation.min_clients, threshold_of(len(self._plans)))
        self._need("announced keys", adverts, least)
        common = self._common
        roster = Roster(common=common, adverts=tuple(adverts[name] for name in sorted(adverts)))
        requests = dict.fromkeys(roster.names, roster)

        def check(client: str, found: SealedShares, _: RecordDict) -> None:
            check_sealed(roster, found)

        sealed = self._ask(SEALED, SealedShares, f"{MessageType.QUERY}.{SECURE_SHARES}", requests, check)
        self._need("shared secrets", sealed, roster.least_survivors)
        found = SharedSecrets(roster=roster, sealed=sealed)
        self._spool.write_secrets(found)
        return found

    def _check_advert(self, client: str, found: KeyAdvert, _: RecordDict) -> None:
        check_advert(self._common, found)
        if found.frames != (frames := self._federation.training_frames(client)):
            raise FederationError(f"{found.frames} frames, expected the {frames} training frames that it joined with")
        if (known := self._federation.node_keys.setdefault(client, found.identity)) != found.identity:
            # the other clients would refuse a roster with it, and the round would fail at each attempt
            raise FederationError(
                f"its node's key is {found.identity[:16]}, expected {known[:16]} as in its first round"
            )

    def _collect_masked(self, secrets: SharedSecrets) -> SumRequest:
        """Collect masked updates; those that have arrived when all clients have answered or dropped out are summed."""
        roster = secrets.roster
        missing = [name for name in secrets.sealed if not self._spool.has_masked(name, roster)]
        requests = {name: masking_request(roster, secrets.sealed, name) for name in missing if name in self._plans}

        def store(client: str, found: MaskedUpdate, content: RecordDict) -> None:
            self._spool.receive(client, found, Path(str(content["answer"].get(WEIGHTS_PATH, ""))), roster)
            self._listener.on_result(found)

        stored = self._ask(MASKED, MaskedUpdate, f"{MessageType.QUERY}.{SECURE_MASK}", requests, store)
        arrived = sorted(secrets.sealed.keys() - set(missing) | stored.keys())
        self._need("sent masked updates", arrived, max(roster.least_survivors, self._federation.min_clients))
        request = SumRequest(roster=roster.digest, sharers=tuple(sorted(secrets.sealed)), survivors=tuple(arrived))
        self._spool.write_survivors(request)
        return request

    def _open(self, roster: Roster, request: SumRequest) -> Update:
        """Let the clients agree to the sum, take their shares, and remove the masks."""
        asked = dict.fromkeys((name for name in request.survivors if name in self._plans), request)

        def check(client: str, found: Consent, _: RecordDict) -> None:
            check_consent(roster, request, found)

        consents = self._ask(CONSENT, Consent, f"{MessageType.QUERY}.{SECURE_CONSENT}", asked, check)
        self._need("agreed to the sum", consents, roster.least_survivors)
        unmasking = UnmaskingRequest(sum=request, consents=tuple(consents.values()))

        def check_shares(client: str, found: RevealedShares, _: RecordDict) -> None:
            check_revealed(roster, request, found)

        requests = dict.fromkeys(consents, unmasking)
        action = f"{MessageType.QUERY}.{SECURE_REVEAL}"
        revealed = self._ask(REVEALED, RevealedShares, action, requests, check_shares)
        self._need("sent shares of masks", revealed, roster.least_survivors)
        if not has_enough(roster, request, list(revealed)):
            raise RoundIncomplete(f"{self._title}: too few neighbors of a client have sent shares; {self._text()}")
        return self._save(roster, request, revealed)

    def _save(self, roster: Roster, request: SumRequest, revealed: Mapping[str, RevealedShares]) -> Update:
        masks, summed = list(remaining_masks(roster, request, revealed)), summed_updates(roster, request)
        files = [self._spool.masked_file(name) for name in request.survivors]
        digest, words = save_sum(self._spool.sum_file, files, masks, algorithm_of(self._common.global_digest))
        if wrong := false_metrics(words, summed.share):
            found = ", ".join(f"{name} {value:.3g}" for name, value in wrong.items())
            logger.warning(
                "{}: the mean metrics are not possible ({}): a client has sent false ones", self._title, found
            )
        return self._spool.write_sum(
            Update(
                client=SUM_NAME,
                round=self._common.round,
                global_digest=self._common.global_digest,
                path=str(self._spool.sum_file),
                digest=digest,
                bytes=sum(file.stat().st_size for file in files),
                examples=sum(roster.advert(name).frames for name in request.survivors),
                dataset=SUM_NAME,
                metrics=decode_metrics(words, summed.share),
                wire=self._plans[request.survivors[0]].wire,
                summed=summed,
            )
        )

    def _ask[R: Record](
        self,
        form: AnswerForm,
        kind: type[R],
        message_type: str,
        requests: Mapping[str, Record | None],
        check: Callable[[str, R, RecordDict], None],
    ) -> dict[str, R]:
        """Send a request to each client, and return the valid answers in the order of names; others are refused."""
        plans = [self._plans[name] for name in requests]
        found: dict[str, R] = {}
        if not plans:
            return found
        for name in requests:
            if name not in self._asked:
                self._asked.add(name)
                self._listener.on_request(name)
        weights = self._weights[1] if message_type == MessageType.TRAIN else None
        size = self._spool.masked_bytes(self._common.rules.bits) if form == MASKED else 0
        for reply in self._federation.ask(plans, message_type, requests, (weights, size)):
            reason = reply.error
            try:
                if reply.content is not None:
                    answer = parse_answer(reply.content, form, kind)
                    if (name := getattr(answer, "client", reply.sender)) != reply.sender:
                        raise FederationError(f"its answer names client {name}")
                    check(reply.sender, answer, reply.content)
                    found[reply.sender] = answer
            except (FederationError, UpdateError, CheckpointError, FileNotFoundError) as e:
                reason = str(e)
            self._federation.log_reply(reply, message_type, self._common.round, reason)
            if reason:
                self._reasons[reply.sender] = reason
                self._listener.on_result(self.refusals.refuse(reply.sender, reason))
        return {name: found[name] for name in sorted(found)}

    @property
    def _title(self) -> str:
        return f"round {self._common.round}"

    def _need(self, did: str, found: Sequence[str] | Mapping[str, object], least: int) -> None:
        if len(found) < least:
            raise RoundIncomplete(
                f"{self._title}: {len(found)} clients have {did}, expected at least {least} ({self._text()}); "
                "nothing of an update was opened, and what arrived is kept"
            )

    def _text(self) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in sorted(self._reasons.items()))
