"""The Flower ClientApp: one and the same on every engine. It carries; `zk0.training.client` works."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from loguru import logger

from zk0.diagnostics import libraries_logged, memory_told
from zk0.errors import FederationError, Zk0Error
from zk0.federation.gpu import gpu_turn
from zk0.federation.receipts import keep_receipts
from zk0.federation.sent import ELSEWHERE, WEIGHTS_PATH, note_sent, without_places
from zk0.folder import write_whole
from zk0.merkle import Receipt
from zk0.records import EpisodeFilm, Update
from zk0.session import ClientSettings, EvaluationPlan, JoiningPlan, Plan, RoundPlan, Terms
from zk0.training.outbox import forget_session

StepListener = Callable[[str, int, int, int, str], None]
_listener: list[StepListener] = []
_clients: dict[str, tuple[str, Any]] = {}
_logs: dict[str, int] = {}
_MOST_LOGS = 128
"""Open at a time: a system lets a process have a thousand files."""

app = ClientApp()


def listen(listener: StepListener) -> None:
    """Tell someone in this process how clients get on: client, round, step, steps and what the steps are of (`train`:
    optimizer steps; `encode`: frames whose features are computed before the first one)."""
    _listener[:] = [listener]


@app.query()
def join(message: Message, context: Context) -> Message:
    """Check the client's data set and answer what may be said of it."""
    return _answer(message, context, _join)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on a round's plan and answer the update."""
    return _answer(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the global model on what this client holds out and answer numbers."""
    return _answer(message, context, _evaluate)


@app.evaluate("alone")
def train_alone(message: Message, context: Context) -> Message:
    """Train alone as long as the session did, from the policy that it began with."""
    return _answer(message, context, _train_alone)


@app.evaluate("joined")
def judge_joined(message: Message, context: Context) -> Message:
    """Judge what joining has brought; the numbers leave only if the client says so."""
    return _answer(message, context, _judge_joined)


@app.query("receipts")
def receipts(message: Message, context: Context) -> Message:
    """Keep the server's receipts, and check that they prove what this client has sent."""
    return _answer(message, context, _receipts)


def _join(message: Message, config: dict[str, Any]) -> RecordDict:
    client = _client(Terms.model_validate_json(str(message.content["config"]["terms"])), config)
    logger.info("{}: joining with {}", client.name, client.settings.dataset)
    member = client.join()
    counts = f"{len(member.split.train)} episodes, {member.train_frames} frames"
    logger.info("{}: {} to train on, {} held out", client.name, counts, len(member.split.held_out))
    return RecordDict({"answer": ConfigRecord({"member": member.model_dump_json()})})


def _train(message: Message, config: dict[str, Any]) -> RecordDict:
    plan = RoundPlan.model_validate_json(str(message.content["config"]["plan"]))
    client = _client_of(plan, config)
    client.outbox.forget_before(plan.round)
    weights = Path(str(message.content["config"][WEIGHTS_PATH]))
    log = plan.training.log_every_steps

    def on_step(step: int, steps: int, loss: float, lr: float) -> None:
        if step % log == 0 or step == steps:
            logger.info("{}: round {} step {}/{} loss {:.4f} lr {:.3g}", client.name, plan.round, step, steps, loss, lr)
        _tell(client.name, plan.round, step, steps, "train")

    def on_frames(done: int, frames: int) -> None:
        logger.info("{}: features of {}/{} frames computed", client.name, done, frames)
        _tell(client.name, plan.round, done, frames, "encode")

    logger.info(
        "{}: round {} from {} lr {:.3g} mu {:.3g}", client.name, plan.round, plan.global_digest[:12], plan.lr, plan.mu
    )
    with _turn(client, plan):
        update = client.train(plan, weights, on_step, on_frames)
    logger.info("{}: round {} trained in {:.1f} s; {}", client.name, plan.round, update.metrics.seconds, memory_told())
    _note_round(client.scratch, update)
    said = update.model_copy(update={"path": Path(update.path).name})  # folders of this machine are nobody's business
    return RecordDict({"answer": ConfigRecord({"update": said.model_dump_json(), WEIGHTS_PATH: update.path})})


def _evaluate(message: Message, config: dict[str, Any]) -> RecordDict:
    plan = EvaluationPlan.model_validate_json(str(message.content["config"]["plan"]))
    client = _client_of(plan, config)

    def on_frames(done: int, frames: int) -> None:
        logger.info("{}: features of {}/{} held-out frames computed", client.name, done, frames)
        _tell(client.name, plan.round, done, frames, "encode")

    weights = Path(str(message.content["config"][WEIGHTS_PATH]))
    films: tuple[EpisodeFilm, ...] = ()
    with _turn(client, plan):
        found = client.evaluate(plan, weights, on_frames)
        if plan.film is not None:
            from zk0.training.films import film_held_out  # takes seconds

            films = film_held_out(client, plan, weights, found.score)
    loss, frames = found.score.policy_loss, found.score.frames
    logger.info("{}: round {} judged on {} held-out frames: loss {:.4f}", client.name, plan.round, frames, loss)
    for film in films:
        if film.video_fault:
            logger.warning("{}: episode {} is not filmed: {}", client.name, film.episode, film.video_fault)
    write_whole(client.scratch / f"evaluation_{plan.round}.json", found.model_dump_json(indent=2))
    return RecordDict({"answer": ConfigRecord({"score": found.model_dump_json()})})


def _train_alone(message: Message, config: dict[str, Any]) -> RecordDict:
    from zk0.training.joining import train_alone  # takes seconds

    plan = JoiningPlan.model_validate_json(str(message.content["config"]["plan"]))
    client = _client_of(plan, config)
    logger.info("{}: trains alone for {} rounds, to compare", client.name, len(plan.lrs))
    with _turn(client, plan):
        train_alone(client, plan, Path(str(message.content["config"][WEIGHTS_PATH])))
    return RecordDict({"answer": ConfigRecord({"done": True})})


def _judge_joined(message: Message, config: dict[str, Any]) -> RecordDict:
    from zk0.training.joining import judge_joined  # takes seconds

    plan = JoiningPlan.model_validate_json(str(message.content["config"]["plan"]))
    client = _client_of(plan, config)
    with _turn(client, plan):
        report = judge_joined(client, plan, Path(str(message.content["config"][WEIGHTS_PATH])))
    logger.info("{}: what joining has brought is in {}", client.name, client.scratch / "joining.md")
    shared = report.model_dump_json() if client.settings.share_joining_report else ""
    return RecordDict({"answer": ConfigRecord({"joining": shared})})


def _receipts(message: Message, config: dict[str, Any]) -> RecordDict:
    told = json.loads(str(message.content["config"]["receipts"]))
    name = ClientSettings.model_validate_json(config["client"]).name
    session = Terms.model_validate_json(str(message.content["config"]["terms"])).session
    receipts = [Receipt.model_validate(one) for one in told]
    checked = keep_receipts(name, Path(config["scratch"]), session, receipts)
    logger.info("{}: {} updates are proved to be in their rounds' averages", name, checked)
    terms = Terms.model_validate_json(str(message.content["config"]["terms"]))
    forget_session(Path(config["scratch"]), terms.session)  # all rounds are over
    return RecordDict({"answer": ConfigRecord({"checked": checked})})


def _turn(client: Any, plan: Plan) -> AbstractContextManager[None]:
    return gpu_turn(plan.training, lambda: logger.info("{}: waits for its turn on the GPU", client.name))


def _tell(client: str, round_number: int, step: int, steps: int, work: str) -> None:
    for listener in _listener:
        listener(client, round_number, step, steps, work)


def _note_round(scratch: Path, update: Update) -> None:
    write_whole(scratch / f"round_{update.round}.json", update.model_dump_json(indent=2))


def _answer(message: Message, context: Context, work: Callable[[Message, dict[str, Any]], RecordDict]) -> Message:
    """Whatever goes wrong travels as a line of text, on every engine the same; the trace stays in the client's log."""
    try:
        config = _node_config(message.content["config"], context)
        with _client_log(Path(config["scratch"])):
            content = _worked_out(message, config, work)
    except Exception as e:  # carried to the server, which refuses this client's answer
        content = _refusal(_said(e))
    return Message(content, reply_to=message)


def _worked_out(
    message: Message, config: dict[str, Any], work: Callable[[Message, dict[str, Any]], RecordDict]
) -> RecordDict:
    try:
        content = work(message, config)
    except Zk0Error as e:
        logger.error("{}", e)
        content = _refusal(str(e))
    except Exception as e:  # carried to the server, too
        logger.exception("{}", e)
        content = _refusal(_said(e))
    if config.get(ELSEWHERE):
        content = without_places(content, ClientSettings.model_validate_json(config["client"]).dataset)
    try:
        note_sent(message, content, Path(config["scratch"]))
    except (Zk0Error, OSError, ValueError) as e:
        logger.error("{}", e)
        said = content["answer"].get("refusal", "its answer did not leave")
        content = _refusal(f"{said}; its journal could not be written: {type(e).__name__}: {e}")
    return content


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no text')}; see the client's log"


def _refusal(reason: str) -> RecordDict:
    return RecordDict({"answer": ConfigRecord({"refusal": reason})})


def _node_config(request: ConfigRecord, context: Context) -> dict[str, Any]:
    """Where this client's data lies: the node's own configuration; simulated nodes look it up by partition."""
    if "nodes" in request and "partition-id" in context.node_config:
        nodes = json.loads(Path(str(request["nodes"])).read_text(encoding="utf-8"))
        return dict(nodes[int(context.node_config["partition-id"])])
    return dict(context.node_config)


def _client_of(plan: Plan, config: dict[str, Any]) -> Any:
    client = _client(plan.terms, config)
    if client.name != plan.client:
        raise FederationError(f"{client.name}: got the plan of {plan.client}; join again")
    return client


def _client(terms: Terms, config: dict[str, Any]) -> Any:
    """The client of a scratch folder under these terms; under other ones it is made anew, as by another session."""
    key, folder = json.dumps([terms.model_dump(), config], sort_keys=True), config["scratch"]
    if folder not in _clients or _clients[folder][0] != key:
        from zk0.training.client import Client  # takes seconds

        settings = ClientSettings.model_validate_json(config["client"])
        films = Path(config["films"]) if "films" in config else None
        _clients[folder] = key, Client(settings, terms, Path(folder), Path(config["cache"]), films)
    return _clients[folder][1]


@contextmanager
def _client_log(scratch: Path) -> Iterator[None]:
    """What is logged meanwhile goes to the client's own log too; other clients in this process have theirs.

    A log stays open for the client's next message: opening one takes longer than most messages.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    mine = str(scratch)
    if mine not in _logs:
        if len(_logs) == _MOST_LOGS:
            logger.remove(_logs.pop(next(iter(_logs))))
        keep: dict[str, Any] = {"rotation": "500 MB", "retention": "10 days", "compression": "zip", "diagnose": False}
        _logs[mine] = logger.add(
            scratch / "client.log", filter=lambda r: bool(r["extra"].get("client") == mine), watch=True, **keep
        )
    with logger.contextualize(client=mine), libraries_logged():
        yield
