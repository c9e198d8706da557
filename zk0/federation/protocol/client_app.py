"""The Flower ClientApp of zk0, the same on every engine: it parses messages, calls `zk0.client.client`, and answers.

An engine calls `client_app` in a worker process with a message and the node's context. Every error becomes an answer
with a refusal, so that a client's failure never fails the round.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from loguru import logger
from pydantic import Field, TypeAdapter, ValidationError

from zk0.audit.journal import SentJournal
from zk0.audit.ledger_heads import MAX_HEADS
from zk0.audit.merkle import Receipt
from zk0.audit.signing_key import SigningKey
from zk0.client.round_state import remove_session_state
from zk0.client.secure_answers import SecureAnswers
from zk0.diagnostics import memory_summary
from zk0.errors import FederationError, Zk0Error, first_line, may_pass
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.answers import ADVERT, CONSENT, MASKED, MAX_REASON, REVEALED, SEALED, refusal
from zk0.federation.protocol.client_log import client_log
from zk0.federation.protocol.exchange import (
    FEATURES,
    JOINING_REPORT,
    LOCAL_BASELINE,
    RECEIPTS,
    SECURE,
    SECURE_CONSENT,
    SECURE_MASK,
    SECURE_REVEAL,
    SECURE_SHARES,
)
from zk0.federation.protocol.process_clients import client_for_plan, get_client, node_config
from zk0.federation.protocol.receipts import store_receipts
from zk0.federation.protocol.request_limits import (
    check_epochs,
    check_member,
    check_plan,
    check_receipts,
    check_refusals,
    check_score,
    check_terms,
    count_refusal,
    round_clock,
)
from zk0.federation.protocol.sent_log import (
    REMOTE,
    SENT_JOURNAL,
    record_sent,
    redacted_answer,
    with_journal_head,
)
from zk0.federation.protocol.shown_heads import LEDGER_KEY, SESSION_NAME, check_heads, head_store
from zk0.records import MAX_TEXT, EpisodeVideo, JoiningStep, Record, clean_text
from zk0.secure.messages import MaskingRequest, Roster, SumRequest, UnmaskingRequest
from zk0.settings.dataset_settings import ClientSettings
from zk0.settings.loading import faults_by_field
from zk0.settings.plans import ClientPlan, EvaluationPlan, FeaturePlan, JoiningReportPlan, RoundPlan, SessionTerms
from zk0.storage.atomic import atomic_write_text
from zk0.training.gpu_share import gpu_share_for

if TYPE_CHECKING:
    from zk0.training.feature_cache import FrameProgressCallback

ProgressListener = Callable[[str, int, int, int, str], None]
"""Called with client, round, step, steps and kind of step: one of STEPS, GPU_WAIT or OWN_TURN."""

STEPS = ("train", "encode")
"""An optimizer step, and a frame whose features are computed."""
GPU_WAIT = "wait"
"""The client begins to wait for its share of the GPU."""
OWN_TURN = "turn"
"""The client has waited, and goes on."""

_RECEIPTS = TypeAdapter(Annotated[tuple[Receipt, ...], Field(max_length=MAX_HEADS)])
_ROUND = re.compile(r'"round":(\d{1,9}),"client":')
_listener: list[ProgressListener] = []

flower_client_app = ClientApp()
"""Handles one message at a time in a process: the clients of a process share its policy and its progress listener."""


def set_progress_listener(listener: ProgressListener) -> None:
    """Set the function that the clients of this process call with their progress."""
    _listener[:] = [listener]


@flower_client_app.query()
def handle_join(message: Message, context: Context) -> Message:
    """Check the client's dataset, and answer with its member record."""
    return _answer(message, context, _join)


@flower_client_app.train()
def handle_train(message: Message, context: Context) -> Message:
    """Train on a round's plan, and answer with the update."""
    return _answer(message, context, _train)


@flower_client_app.evaluate()
def handle_evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on the client's held-out episodes, and answer with the score."""
    return _answer(message, context, _evaluate)


@flower_client_app.evaluate(LOCAL_BASELINE)
def handle_local_baseline(message: Message, context: Context) -> Message:
    """Train the client alone for as many rounds as the session, from the weights that it started from."""
    return _answer(message, context, _train_local_baseline)


@flower_client_app.evaluate(JOINING_REPORT)
def handle_joining_report(message: Message, context: Context) -> Message:
    """Measure what joining brought the client; the answer holds the report only if the client's settings share it."""
    return _answer(message, context, _report_joining)


@flower_client_app.query(FEATURES)
def handle_features(message: Message, context: Context) -> Message:
    """Compute the features of the client's frames, so that no round waits for them."""
    return _answer(message, context, _compute_features)


@flower_client_app.query(RECEIPTS)
def handle_receipts(message: Message, context: Context) -> Message:
    """Check the server's receipts against the updates that the client sent, and store them."""
    return _answer(message, context, _store_receipts)


@flower_client_app.query(SECURE_SHARES)
def handle_secure_shares(message: Message, context: Context) -> Message:
    """Share the client's secrets of a round with the other clients."""
    return _answer(message, context, _share_secrets)


@flower_client_app.query(SECURE_MASK)
def handle_secure_mask(message: Message, context: Context) -> Message:
    """Answer with the client's masked update."""
    return _answer(message, context, _mask_update)


@flower_client_app.query(SECURE_CONSENT)
def handle_secure_consent(message: Message, context: Context) -> Message:
    """Sign the sum to which the client contributes."""
    return _answer(message, context, _consent_to_sum)


@flower_client_app.query(SECURE_REVEAL)
def handle_secure_reveal(message: Message, context: Context) -> Message:
    """Answer with the shares that remove the masks from the sum."""
    return _answer(message, context, _reveal_shares)


def _join(message: Message, config: dict[str, Any]) -> RecordDict:
    terms = _terms(message)
    check_terms(terms, config)
    check_heads(message.content["config"], config, terms)
    client = get_client(terms, config)
    logger.info("{}: joining with {}", client.name, client.settings.dataset)
    steps = list[JoiningStep]()
    try:
        member = client.join(steps.append)
    except Zk0Error as e:
        logger.error("{}", e)
        return _with_steps(refusal(str(e), may_pass(e)), steps)
    if member.report.repairs:
        logger.info("{}: takes part with a repaired copy ({})", client.name, ", ".join(member.report.repairs))
    check_member(member, terms, config)
    counts = f"{len(member.split.train)} episodes, {member.train_frames} frames"
    logger.info("{}: {} to train on, {} held out", client.name, counts, len(member.split.held_out))
    return _with_steps(RecordDict({"answer": ConfigRecord({"member": member.model_dump_json()})}), steps)


def _with_steps(content: RecordDict, steps: list[JoiningStep]) -> RecordDict:
    content.config_records["answer"]["steps"] = json.dumps([step.model_dump() for step in steps])
    return content


def _compute_features(message: Message, config: dict[str, Any]) -> RecordDict:
    plan = _checked_plan(FeaturePlan, message, config)
    client = client_for_plan(plan, config)

    with _gpu_share(client, plan):
        client.compute_features(plan, _frame_listener(plan, "frames", round_clock(config)))
    return RecordDict({"answer": ConfigRecord({"done": True})})


def _train(message: Message, config: dict[str, Any]) -> RecordDict:
    plan = _checked_plan(RoundPlan, message, config)
    client = client_for_plan(plan, config)
    check_epochs(plan, client.statistics.state.count, config)
    client.outbox.remove_before(plan)
    every = plan.training.log_every_steps

    def on_step(step: int, steps: int, loss: float, lr: float) -> None:
        stop_late()
        if step % every == 0 or step == steps:
            logger.info("{}: round {} step {}/{} loss {:.4f} lr {:.3g}", client.name, plan.round, step, steps, loss, lr)
        _report_progress(client.name, plan.round, step, steps, "train")

    logger.info(
        "{}: round {} from {} lr {:.3g} mu {:.3g}", client.name, plan.round, plan.global_digest[:12], plan.lr, plan.mu
    )
    with _gpu_share(client, plan):
        stop_late = round_clock(config)
        update = client.train(plan, _weights(message), on_step, _frame_listener(plan, "frames", stop_late))
    seconds = update.metrics.seconds
    logger.info("{}: round {} trained in {:.1f} s; {}", client.name, plan.round, seconds, memory_summary())
    atomic_write_text(client.scratch / f"round_{update.round}.json", update.model_dump_json(indent=2))
    if plan.secure is not None:
        advert = SecureAnswers(client, plan, _node_key(config)).advertise(update)
        return RecordDict({"answer": ConfigRecord({ADVERT.key: advert.model_dump_json()})})
    sent = update.model_copy(update={"path": Path(update.path).name})  # folders of this machine stay private
    return RecordDict({"answer": ConfigRecord({"update": sent.model_dump_json(), WEIGHTS_PATH: update.path})})


def _evaluate(message: Message, config: dict[str, Any]) -> RecordDict:
    plan = _checked_plan(EvaluationPlan, message, config)
    client, weights = client_for_plan(plan, config), _weights(message)

    videos: tuple[EpisodeVideo, ...] = ()
    with _gpu_share(client, plan):
        stop_late = round_clock(config)
        found = client.evaluate(plan, weights, _frame_listener(plan, "held-out frames", stop_late), stop_late)
        for score in (found.score, found.personal):
            if score is not None:
                check_score(score, config)
        if plan.video is not None:
            from zk0.client.held_out_videos import render_held_out_videos  # takes seconds

            videos = render_held_out_videos(client, plan, weights, found.score, stop_late)
    found = found.without_step_errors()
    loss, frames = found.score.policy_loss, found.score.frames
    own = "" if found.personal is None else f", of its own policy {found.personal.policy_loss:.4f}"
    logger.info(
        "{}: round {} evaluated on {} held-out frames: loss {:.4f}{}", client.name, plan.round, frames, loss, own
    )
    if found.personal is not None and plan.save_personal:
        logger.info("{}: its own policy is saved in {}", client.name, client.own_policy(plan).folder)
    for video in videos:
        if video.video_error:
            logger.warning("{}: no video of episode {}: {}", client.name, video.episode, video.video_error)
    atomic_write_text(client.scratch / f"evaluation_{plan.round}.json", found.model_dump_json(indent=2))
    return RecordDict({"answer": ConfigRecord({"score": found.model_dump_json()})})


def _train_local_baseline(message: Message, config: dict[str, Any]) -> RecordDict:
    from zk0.client.joining_report import train_locally  # takes seconds

    plan = _checked_plan(JoiningReportPlan, message, config)
    client = client_for_plan(plan, config)
    check_epochs(plan, client.statistics.state.count, config)
    logger.info("{}: trains the local-only baseline for {} rounds", client.name, len(plan.lrs))
    with _gpu_share(client, plan):
        train_locally(client, plan, _weights(message), round_clock(config))
    return RecordDict({"answer": ConfigRecord({"done": True})})


def _report_joining(message: Message, config: dict[str, Any]) -> RecordDict:
    from zk0.client.joining_report import evaluate_joining  # takes seconds

    plan = _checked_plan(JoiningReportPlan, message, config)
    client = client_for_plan(plan, config)
    check_epochs(plan, client.statistics.state.count, config)
    with _gpu_share(client, plan):
        report = evaluate_joining(client, plan, _weights(message), round_clock(config))
    logger.info("{}: joining report written to {}", client.name, client.scratch / "joining.md")
    shared = report.model_dump_json() if client.settings.share_joining_report else ""
    for score in report.models.values() if shared else ():
        check_score(score, config)
    return RecordDict({"answer": ConfigRecord({"report": shared})})


def _secure_answers(message: Message, config: dict[str, Any]) -> SecureAnswers:
    step = message.metadata.message_type.rpartition(".")[2]
    plan = _checked_plan(RoundPlan, message, config, work=f"take part in {step}")
    return SecureAnswers(client_for_plan(plan, config), plan, _node_key(config))


def _share_secrets(message: Message, config: dict[str, Any]) -> RecordDict:
    sealed = _secure_answers(message, config).share(_secure_request(Roster, message))
    return RecordDict({"answer": ConfigRecord({SEALED.key: sealed.model_dump_json()})})


def _mask_update(message: Message, config: dict[str, Any]) -> RecordDict:
    masked, file = _secure_answers(message, config).mask(_secure_request(MaskingRequest, message))
    logger.info("{}: masked its update for the sum of roster {}", masked.client, masked.roster[:12])
    return RecordDict({"answer": ConfigRecord({MASKED.key: masked.model_dump_json(), WEIGHTS_PATH: str(file)})})


def _consent_to_sum(message: Message, config: dict[str, Any]) -> RecordDict:
    request = _secure_request(SumRequest, message)
    consent = _secure_answers(message, config).consent(request)
    logger.info("{}: agrees to the sum of {}", consent.client, ", ".join(request.survivors))
    return RecordDict({"answer": ConfigRecord({CONSENT.key: consent.model_dump_json()})})


def _reveal_shares(message: Message, config: dict[str, Any]) -> RecordDict:
    revealed = _secure_answers(message, config).reveal(_secure_request(UnmaskingRequest, message))
    return RecordDict({"answer": ConfigRecord({REVEALED.key: revealed.model_dump_json()})})


def _secure_request[R: Record](kind: type[R], message: Message) -> R:
    return _parsed(message, SECURE, kind.model_validate_json)


def _node_key(config: dict[str, Any]) -> SigningKey:
    """Return the key with which this node signs its journal."""
    journal = SentJournal(Path(config["scratch"]) / SENT_JOURNAL)
    return SigningKey(journal.private_key, journal.public_key)


def _store_receipts(message: Message, config: dict[str, Any]) -> RecordDict:
    name, scratch = ClientSettings.model_validate_json(config["client"]).name, Path(config["scratch"])
    terms = _terms(message)
    check_receipts(config)
    session = terms.session
    if LEDGER_KEY in config and not (SESSION_NAME.fullmatch(session) and head_store(scratch).read(session)):
        raise FederationError(f"receipts of session {session[:80]!r}, in which this node has taken no part")
    check_heads(message.content["config"], config, terms, most=MAX_HEADS)
    receipts = _parsed(message, "receipts", _RECEIPTS.validate_json)
    checked = store_receipts(name, scratch, session, receipts, must_be_signed=LEDGER_KEY in config)
    logger.info("{}: {} receipts: the updates are in the lists of their rounds", name, checked)
    remove_session_state(scratch, session)  # all rounds are over
    return RecordDict({"answer": ConfigRecord({"checked": checked})})


def _terms(message: Message) -> SessionTerms:
    return _parsed(message, "terms", SessionTerms.model_validate_json)


def _parsed[T](message: Message, key: str, parse: Callable[[str], T]) -> T:
    """Return a part of a request.

    Raises:
        FederationError: it is not valid; names each wrong field.
    """
    try:
        return parse(str(message.content["config"].get(key, "")))
    except ValidationError as e:
        faults = clean_text(faults_by_field(e), MAX_REASON)
        raise FederationError(f"the {key} in the server's request cannot be taken: {faults}") from e


def _checked_plan[P: ClientPlan](kind: type[P], message: Message, config: dict[str, Any], work: str = "") -> P:
    """Return the plan of a request that may be answered.

    Raises:
        FederationError: the server's ledger is not the one that it showed before, or a limit of the node is broken.
    """
    plan = _parsed(message, "plan", kind.model_validate_json)
    check_heads(message.content["config"], config, plan.terms, plan)
    check_plan(plan, config, work)
    return plan


def _frame_listener(plan: ClientPlan, what: str, stop_late: Callable[[], None]) -> "FrameProgressCallback":
    """Return the function that logs and reports how many of these frames have features, and ends what is late."""

    def on_frames(done: int, frames: int) -> None:
        stop_late()
        logger.info("{}: features of {}/{} {} computed", plan.client, done, frames, what)
        _report_progress(plan.client, plan.round, done, frames, "encode")

    return on_frames


def _weights(message: Message) -> Path:
    return Path(str(message.content["config"][WEIGHTS_PATH]))


@contextmanager
def _gpu_share(client: Any, plan: ClientPlan) -> Iterator[None]:
    """Hold the client's share of the GPU inside the block; time for which it waits is not its own."""

    waits = []

    def on_wait() -> None:
        waits.append(client.name)
        logger.info("{}: waits for its share of the GPU", client.name)
        _report_progress(client.name, plan.round, 0, 0, GPU_WAIT)

    with gpu_share_for(plan.training, on_wait):
        if waits:
            _report_progress(client.name, plan.round, 0, 0, OWN_TURN)
        yield


def _report_progress(client: str, round_number: int, step: int, steps: int, work: str) -> None:
    for listener in _listener:
        listener(client, round_number, step, steps, work)


def _answer(message: Message, context: Context, work: Callable[[Message, dict[str, Any]], RecordDict]) -> Message:
    """Answer a message. An error is sent as one line of text; its traceback stays in the client's log."""
    try:
        config = node_config(message.content["config"], context)
        log = Path(config["session_log"]) if config.get("session_log") else None
        with client_log(Path(config["scratch"]), log, _works_for(message, config)):
            content = _recorded_answer(message, config, work)
    except Exception as e:  # sent to the server, which refuses this client's answer
        content = refusal(_error_text(e), may_pass(e))
    return Message(content, reply_to=message)


def _recorded_answer(
    message: Message, config: dict[str, Any], work: Callable[[Message, dict[str, Any]], RecordDict]
) -> RecordDict:
    """Return the answer after it was redacted and written to the client's journal; an answer without entry is lost.

    Only refusals of requests that were not read have no entry: a server could otherwise fill the disk with them.
    """
    try:
        check_refusals(config)
    except FederationError as e:
        logger.error("{}", e)
        return refusal(str(e))
    try:
        content = work(message, config)
    except Zk0Error as e:
        logger.error("{}", clean_text(str(e), MAX_TEXT) if config.get(REMOTE) else e)  # it may hold words of the server
        content = refusal(str(e), may_pass(e))
    except Exception as e:  # sent to the server, too
        logger.exception("{}", e)
        content = refusal(_error_text(e), may_pass(e))
    if config.get(REMOTE):
        content = redacted_answer(content, ClientSettings.model_validate_json(config["client"]).dataset)
    try:
        if config.get(REMOTE):
            content = with_journal_head(content, Path(config["scratch"]))
        record_sent(message, content, Path(config["scratch"]))
    except (Zk0Error, OSError, ValueError) as e:
        logger.error("{}", e)
        problem = content["answer"].get("refusal", "its answer was not sent")
        content = refusal(f"{problem}; its journal could not be written: {type(e).__name__}: {e}", may_pass(e))
    if "refusal" in content["answer"]:
        count_refusal(config)
    return content


def _works_for(message: Message, config: dict[str, Any]) -> str:
    """Return the client of this node and the round of a request, for the log; the plan is not checked yet."""
    found = _ROUND.search(str(message.content["config"].get("plan", "")))
    client = ClientSettings.model_validate_json(config["client"]).name
    return f"{client}, round {found[1]}" if found else client


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}; see the client's log"
