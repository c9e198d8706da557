"""A node finds out that its server's ledger is not one history: at once, in its audit, or with another node."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from typer.testing import CliRunner

from flows.bot.audit_view import print_session_heads
from flows.bot.main import zk0bot_app
from zk0.audit.card_root import CardRoot
from zk0.audit.journal import SentJournal, SentMessage
from zk0.audit.ledger import Ledger
from zk0.audit.ledger_heads import HeadSigner, SignedHead
from zk0.audit.merkle import make_receipt
from zk0.audit.signing_key import SigningKey
from zk0.errors import FederationError, LedgerError, SettingsError
from zk0.federation.network.enrolment_kit import EnrolmentKit
from zk0.federation.network.node import NodeFolder
from zk0.federation.network.server import ServerFolder, ServerSettings
from zk0.federation.protocol.client_app import flower_client_app
from zk0.federation.protocol.heads_audit import audited_heads, compare_with_ledger, compare_with_node
from zk0.federation.protocol.receipts import audited_messages, store_receipts
from zk0.federation.protocol.shown_heads import HEADS, LEDGER_KEY, check_heads, head_store, newest_head_digest
from zk0.records import Checkpoint, ClientMetrics, RoundRecord, Update
from zk0.settings.dataset_settings import ClientSettings, ContractSettings, DataSettings, SimulatorSettings
from zk0.settings.plans import ClientPlan, EvaluationPlan, JoiningReportPlan, RoundPlan, SessionTerms

TERMS = SessionTerms(
    session="s", seed=1, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
)


class Server:
    """A server that can show each node another ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = SigningKey(folder / "ledger.key", folder / "ledger.pub")
        self.key.create()

    def ledger(self, name: str, rounds: int = 4) -> Path:
        ledger = Ledger(self.folder / name / "ledger.jsonl")
        for number in range(rounds):
            checkpoint = Checkpoint(round=number, path="p", digest=f"{name}{number}", bytes=1)
            root = f"{number:064d}" if number else None
            ledger.append(
                RoundRecord(round=number, checkpoint=checkpoint, updates_root=root, seconds=1.0, finished_at="t")
            )
        return ledger.path

    def ledger_with_another_end(self, name: str, kept: int) -> Path:
        """Return a valid ledger with the first lines of one, and another line after them."""
        target = self.folder / "rewritten" / "ledger.jsonl"
        target.parent.mkdir()
        lines = self.ledger(name).read_bytes().splitlines()[:kept]
        target.write_bytes(b"".join(line + b"\n" for line in lines))
        for number in range(kept, 4):
            checkpoint = Checkpoint(round=number, path="p", digest="other", bytes=1)
            Ledger(target).append(RoundRecord(round=number, checkpoint=checkpoint, seconds=1.0, finished_at="t"))
        return target

    def heads(self, name: str, rounds: int = 4, session: str = "s") -> tuple[SignedHead, ...]:
        return HeadSigner(self.ledger(name, rounds), session, self.key).signed()


@pytest.fixture
def server(tmp_path: Path) -> Server:
    (tmp_path / "server").mkdir()
    return Server(tmp_path / "server")


def request_with(heads: Sequence[SignedHead]) -> dict[str, str]:
    return {HEADS: json.dumps([one.model_dump(mode="json") for one in heads])} if heads else {}


class Node:
    """A node's check, journal and audit."""

    def __init__(self, scratch: Path, key: str) -> None:
        self.scratch = scratch
        self.config: dict[str, Any] = {"scratch": str(scratch), LEDGER_KEY: key}

    def answer(
        self,
        *heads: SignedHead,
        plan: ClientPlan | None = None,
        terms: SessionTerms = TERMS,
        asked: tuple[str, int | None] = ("train", 1),
    ) -> None:
        """Check the heads of a request, and write the answer to the journal in any case."""
        request = request_with(heads)
        sent = SentMessage(at="2026-01-01T00:00:00+00:00", to=terms.session, kind=asked[0], round=asked[1], text="{}")
        asked_plan = json.dumps({"global_digest": plan.global_digest}) if plan else ""
        sent = sent.model_copy(update={"ledger_head": newest_head_digest(request), "asked": asked_plan})
        SentJournal(self.scratch / "sent.jsonl").append(sent)
        check_heads(request, self.config, terms, plan, most=max(1, len(heads)))  # as those of receipts

    def audit(self) -> list[str]:
        return [one.problem for one in audited_heads(self.scratch, self.config[LEDGER_KEY])]


@pytest.fixture
def node(tmp_path: Path, server: Server) -> Node:
    return Node(tmp_path / "node", server.key.public_hex())


def plan(number: int, digest: str) -> RoundPlan:
    return RoundPlan.model_construct(round=number, global_digest=digest, terms=TERMS)


def evaluation(number: int, digest: str) -> EvaluationPlan:
    return EvaluationPlan.model_construct(round=number, global_digest=digest, terms=TERMS)


def test_one_history_is_accepted_with_gaps_and_repeated_requests(server: Server, node: Node) -> None:
    heads = server.heads("w")
    node.answer(asked=("join", None))  # before round 0 is recorded
    node.answer(asked=("features", 0))
    node.answer(asked=("evaluate", 0), plan=evaluation(0, "w0"))
    node.answer(heads[0], plan=plan(1, "w0"))
    node.answer(heads[0], plan=plan(1, "w0"))
    node.answer(heads[0], asked=("evaluate", 1), plan=evaluation(1, "w1"))
    node.answer(heads[2], asked=("train", 3), plan=plan(3, "w2"))
    node.answer(*heads)
    assert head_store(node.scratch).read("s") == (heads[0], heads[2], heads[1], heads[3])
    (found,) = audited_heads(node.scratch, server.key.public_hex())
    assert (found.heads, found.rounds, found.requests, found.without_head, found.problem) == (4, 4, 8, 0, "")


@pytest.mark.parametrize(
    "asked", [plan(1, "w0"), evaluation(1, "w1"), JoiningReportPlan.model_construct(round=0, global_digest="w0")]
)
def test_a_server_that_never_shows_a_head_gets_no_answer(node: Node, asked: ClientPlan) -> None:
    with pytest.raises(FederationError, match="shows no head of its ledger"):
        node.answer(plan=asked)


def test_weights_that_no_round_made_are_counted_when_the_ledger_shows_the_round(
    server: Server, node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights of a round are evaluated before its line is written."""
    heads = server.heads("w")
    node.answer(heads[0], asked=("evaluate", 1), plan=evaluation(1, "chosen"))
    (before,) = audited_heads(node.scratch, server.key.public_hex())
    node.answer(heads[1])
    (after,) = audited_heads(node.scratch, server.key.public_hex())
    assert (before.other_weights, after.other_weights, after.problem) == (0, 1, "")
    print_session_heads([after], server.key.public_hex())
    assert "1 answered requests had weights that are not" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(FederationError, match="its weights of 2 lines are w1, and the plan has chosen"):
        node.answer(heads[1], asked=("evaluate", 1), plan=evaluation(1, "chosen"))


def test_messages_of_a_sum_have_the_weights_of_the_round_before(server: Server, node: Node) -> None:
    heads = server.heads("w")
    for kind in ("train", "secure_shares", "secure_mask", "secure_consent", "secure_reveal"):
        node.answer(heads[1], asked=(kind, 2), plan=plan(2, "w1"))
    node.answer(heads[2], asked=("train", 3), plan=plan(3, "w2"))
    (found,) = audited_heads(node.scratch, server.key.public_hex())
    assert (found.other_weights, found.problem) == (0, "")


def test_another_history_is_refused_and_stays_in_the_audit(server: Server, node: Node) -> None:
    ours, other = server.heads("w"), server.heads("x")
    node.answer(ours[1])
    with pytest.raises(FederationError, match="two ledgers of the same length"):
        node.answer(other[1])
    with pytest.raises(FederationError, match="two ledgers of the same length"):
        node.answer(ours[2])  # nothing that follows makes it one history again
    assert "two ledgers of the same length" in node.audit()[0]


def test_a_history_that_does_not_follow_is_refused(server: Server, node: Node) -> None:
    node.answer(server.heads("w")[1])
    with pytest.raises(FederationError, match="does not follow"):
        node.answer(server.heads("x")[2])


def test_rounds_that_were_dropped_are_refused(server: Server, node: Node) -> None:
    heads = server.heads("w")
    node.answer(heads[3])
    with pytest.raises(FederationError, match="it has 2 lines, and had 4"):
        node.answer(heads[1])
    with pytest.raises(FederationError, match="shows no head"):
        node.answer()


def test_a_plan_must_fit_the_head(server: Server, node: Node) -> None:
    heads = server.heads("w")
    with pytest.raises(FederationError, match="it has 1 lines, and the plan is of round 2"):
        node.answer(heads[0], plan=plan(2, "w0"))
    with pytest.raises(FederationError, match="are w1, and the plan has other"):
        node.answer(heads[1], plan=plan(2, "other"))
    with pytest.raises(FederationError, match="it has 2 lines, and the plan is of round 1"):
        node.answer(heads[1], plan=plan(1, "w0"))
    with pytest.raises(FederationError, match="it has 2 lines, and the plan is of round 3"):
        node.answer(heads[1], plan=evaluation(3, "w3"))


def test_a_plan_of_a_buffered_round_may_come_late(server: Server, node: Node) -> None:
    """It names the line from which the round began; what contradicts the later lines is found as ever."""
    heads = server.heads("w")
    node.answer(heads[3], plan=evaluation(3, "w3"))
    late = plan(2, "w1").model_copy(update={"buffered": True})
    node.answer(heads[1], plan=late)
    with pytest.raises(FederationError, match="it has 2 lines, and had 4"):
        node.answer(heads[1], plan=plan(2, "w1"))
    with pytest.raises(FederationError, match="are w1, and the plan has other"):
        node.answer(heads[1], plan=late.model_copy(update={"global_digest": "other"}))
    with pytest.raises(FederationError, match="it has 4 lines, and the plan is of round 2"):
        node.answer(heads[3], plan=late)
    with pytest.raises(FederationError, match="two ledgers of the same length"):
        node.answer(server.heads("x")[1], plan=late)


def test_heads_of_others_are_refused_and_not_stored(server: Server, node: Node, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    forged = Server(tmp_path / "other").heads("w")[0]
    for heads in ((forged,), (server.heads("w")[0].model_copy(update={"head": forged.head, "signature": "0" * 128}),)):
        with pytest.raises(FederationError, match="not signed for session s by the key"):
            node.answer(*heads)
    with pytest.raises(FederationError, match="not signed for session s"):
        node.answer(*server.heads("t", session="t"))
    with pytest.raises(FederationError, match="not a valid name"):
        node.answer(*server.heads("u"), terms=TERMS.model_copy(update={"session": "../x"}))
    assert head_store(node.scratch).sessions() == ()


def test_a_server_cannot_fill_the_disk_with_heads(server: Server, node: Node) -> None:
    """One head comes with a request; all of them come with the receipts of a session of this node."""
    heads = request_with(server.heads("w"))
    with pytest.raises(FederationError, match="shows 4 heads of its ledger with this request, expected 1"):
        check_heads(heads, node.config, TERMS)
    client = ClientSettings(name="arm", dataset="sim:lift-red").model_dump_json()
    context = Context(1, 1, node.config | {"client": client, "cache": str(node.scratch)}, RecordDict(), {})
    content = ConfigRecord({"terms": TERMS.model_dump_json(), "receipts": "[]", **heads})
    metadata = Metadata(1, "m", 1, 2, "", "g", time.time(), 60.0, "query.receipts")
    outside = ConfigRecord({**content, "terms": TERMS.model_copy(update={"session": "../s"}).model_dump_json()})
    for asked in (content, outside):
        reply = flower_client_app(Message(content=RecordDict({"config": asked}), metadata=metadata), context)
        assert "in which this node has taken no part" in str(reply.content["answer"]["refusal"])
    assert head_store(node.scratch).sessions() == ()
    check_heads(request_with(server.heads("w")[:1]), node.config, TERMS)
    reply = flower_client_app(Message(content=RecordDict({"config": content}), metadata=metadata), context)
    assert reply.content["answer"]["checked"] == 0
    assert len(head_store(node.scratch).read("s")) == 4


@pytest.mark.parametrize("text", ["no json", "{}", "[1]", '[{"head":{}}]', "[" * 100_000])
def test_what_is_no_head_is_refused(node: Node, text: str) -> None:
    with pytest.raises(FederationError, match="no valid heads"):
        check_heads({HEADS: text}, node.config, TERMS)
    assert newest_head_digest({HEADS: text}) == ""


def test_a_client_on_the_servers_machine_checks_nothing(server: Server, node: Node) -> None:
    del node.config[LEDGER_KEY]
    node.answer(*server.heads("w"))
    node.answer(plan=plan(1, "w0"))
    assert head_store(node.scratch).sessions() == ()


@pytest.mark.parametrize("key", ["", "0" * 63, None])
def test_a_kit_without_a_ledger_key_is_not_complete(server: Server, tmp_path: Path, key: str | None) -> None:
    here = ServerFolder(tmp_path / "real")
    here.init(ServerSettings(hosts=("127.0.0.1",)))
    values = here.enroll("arm").model_dump() | {"ledger_key": key}
    file = tmp_path / "arm.kit"
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    with pytest.raises(SettingsError, match="not a complete kit"):
        EnrolmentKit.read(file)


NO_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "change",
    [
        {"key": "secret"},
        {"key": NO_KEY},
        {"ca_certificate": "secret"},
        {"server": "-secret:1"},
        {"server": "h:1\nsecret"},
        {"name": "../secret"},
    ],
)
def test_a_kit_of_somebody_else_is_checked_before_it_is_stored(tmp_path: Path, change: dict[str, str]) -> None:
    """The message names the field, and nothing of the key."""
    here = ServerFolder(tmp_path / "real")
    here.init(ServerSettings(hosts=("127.0.0.1",)))
    file = tmp_path / "arm.kit"
    here.enroll("arm").write(file)
    assert EnrolmentKit.read(file).fingerprint().startswith("SHA256:")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(SettingsError, match=rf"not a complete kit \({next(iter(change))}: ") as error:
        EnrolmentKit.read(file)
    assert "secret" not in str(error.value)


def test_a_receipt_needs_the_signed_head_of_its_round(server: Server, node: Node, tmp_path: Path) -> None:
    """A receipt with a tree of one leaf fits every update: only the head shows that the server lists it."""
    update = Update(
        client="arm", round=1, global_digest="w0", path="", digest="d", bytes=1, examples=1, dataset="d",
        metrics=ClientMetrics.model_validate(dict.fromkeys(ClientMetrics.model_fields, 1)),
    )  # fmt: skip
    text = json.dumps({"update": update.model_dump_json()})
    journal = SentJournal(node.scratch / "sent.jsonl")
    journal.append(SentMessage(at="2026-01-01T00:00:00+00:00", to="s", kind="train", round=1, text=text))
    receipt = make_receipt([update], "arm")
    with pytest.raises(FederationError, match="whose ledger head the server has not shown"):
        store_receipts("arm", node.scratch, "s", [receipt], must_be_signed=True)
    assert list(tmp_path.rglob("round_1.json")) == []
    check_heads(request_with(server.heads("w")[:2]), node.config, TERMS, most=2)
    with pytest.raises(FederationError, match="the server signed 00000000000"):
        store_receipts("arm", node.scratch, "s", [receipt], must_be_signed=True)
    checkpoint = Checkpoint(round=0, path="p", digest="w0", bytes=1)
    ledger = Ledger(tmp_path / "true" / "ledger.jsonl")
    ledger.append(RoundRecord(round=0, checkpoint=checkpoint, seconds=1, finished_at="t"))
    last = checkpoint.model_copy(update={"round": 1, "digest": "w1"})
    ledger.append(
        RoundRecord(round=1, checkpoint=last, updates=(update,), updates_root=receipt.root, seconds=1, finished_at="t")
    )
    other = Node(tmp_path / "other-node", node.config[LEDGER_KEY])
    SentJournal(other.scratch / "sent.jsonl").append(journal.read()[0])
    check_heads(request_with(HeadSigner(ledger.path, "s", server.key).signed()), other.config, TERMS, most=2)
    assert store_receipts("arm", other.scratch, "s", [receipt], must_be_signed=True) == 1
    assert [one.root_signed for one in audited_messages(other.scratch)] == [True]


def test_heads_that_were_removed_are_found_by_the_journal(server: Server, node: Node) -> None:
    node.answer(*server.heads("w"))
    head_store(node.scratch).file("s").unlink()
    assert "1 heads in the journal are missing" in node.audit()[0]


def test_two_nodes_with_different_histories(server: Server, node: Node, tmp_path: Path) -> None:
    key = server.key.public_hex()
    same, deceived = Node(tmp_path / "same", key), Node(tmp_path / "deceived", key)
    node.answer(*server.heads("w")[:2])
    same.answer(*server.heads("w")[1:])
    deceived.answer(*server.heads("x")[:3])
    assert node.audit() == same.audit() == deceived.audit() == [""]
    file = head_store(same.scratch).file("s")
    assert compare_with_node(node.scratch, key, file).startswith("session s: 1 heads are those of")
    with pytest.raises(FederationError, match="two ledgers of session s"):
        compare_with_node(node.scratch, key, head_store(deceived.scratch).file("s"))
    (tmp_path / "other").mkdir()
    with pytest.raises(FederationError, match="all signed by the key"):
        compare_with_node(node.scratch, Server(tmp_path / "other").key.public_hex(), file)


def test_a_ledger_file_is_the_one_that_was_shown(server: Server, node: Node, tmp_path: Path) -> None:
    node.answer(*server.heads("w"))
    ledger = server.ledger("w")
    assert "has all 4 heads that the server showed of session s" in compare_with_ledger(node.scratch, ledger)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(line + b"\n" for line in ledger.read_bytes().splitlines()[:2]))
    with pytest.raises(FederationError, match="has 2 rounds, the server showed one of 3"):
        compare_with_ledger(node.scratch, cut)
    with pytest.raises(FederationError, match="none of its lines is that of a head"):
        compare_with_ledger(node.scratch, server.ledger("x"))
    with pytest.raises(FederationError, match="its first 3 lines are not those"):
        compare_with_ledger(node.scratch, server.ledger_with_another_end("w", 2))
    with pytest.raises(FederationError, match=r"has shown \(no session\)"):
        compare_with_ledger(tmp_path / "empty", ledger)


def test_a_model_card_states_a_root_that_was_shown(server: Server, node: Node, tmp_path: Path) -> None:
    node.answer(*server.heads("w"))
    card, root = tmp_path / "README.md", server.heads("w")[2].head.root
    card.write_text(f"# A policy\n\n{CardRoot(round=2, root=root).line()}\n")
    assert "that of session s up to round 2" in compare_with_ledger(node.scratch, card)
    for stated in (CardRoot(round=1, root=root), CardRoot(round=2, root="1" * 64), CardRoot(round=9, root=root)):
        card.write_text(stated.line())
        with pytest.raises(FederationError, match=f"of round {stated.round}, and the server has shown none with it"):
            compare_with_ledger(node.scratch, card)
    card.write_text("# A policy")
    with pytest.raises(LedgerError, match="states no ledger root"):
        compare_with_ledger(node.scratch, card)


def test_the_audit_command_reports_a_server_with_two_histories(server: Server, tmp_path: Path) -> None:
    """With a real kit: the server's key is in it."""
    here = ServerFolder(tmp_path / "real")
    here.init(ServerSettings(hosts=("127.0.0.1",)))
    folder = NodeFolder(tmp_path / "home" / "client")
    folder.install_kit(here.enroll("arm"))
    server.key = here.ledger_key
    node = Node(folder.scratch, folder.read_kit().ledger_key)
    node.answer(*server.heads("w")[:3])
    command = ["client", "audit", "--home", str(tmp_path / "home")]
    result = CliRunner().invoke(zk0bot_app, command)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "s: 3 heads, ledger of 3 lines, 0 of 1 without a head; they contradict each other nowhere" in text
    result = CliRunner().invoke(zk0bot_app, [*command, "--ledger", str(server.ledger("x"))])
    assert (result.exit_code, "none of its lines is that of a head" in " ".join(result.output.split())) == (1, True)
    result = CliRunner().invoke(zk0bot_app, [*command, "--ledger", str(server.ledger("w"))])
    assert (result.exit_code, "has all 3 heads" in " ".join(result.output.split())) == (0, True)
    with pytest.raises(FederationError):
        node.answer(*server.heads("x")[:3])
    result = CliRunner().invoke(zk0bot_app, command)
    assert (result.exit_code, "not one history" in result.output) == (1, True)


def test_requests_carry_the_newest_head_and_receipts_all_of_them(server: Server) -> None:
    from zk0.federation.protocol.collect import Federation

    heads = server.heads("w")
    federation = Federation(None, ("a",), 1.0, heads=HeadSigner(server.ledger("w"), "s", server.key))  # type: ignore[arg-type]
    shown = federation._config(terms="")[HEADS]
    assert json.loads(str(shown)) == [heads[-1].model_dump(mode="json")]
    every = federation._config(terms="", **federation._shown_heads(newest=10))[HEADS]
    assert json.loads(str(every)) == [one.model_dump(mode="json") for one in heads]
    assert HEADS not in Federation(None, ("a",), 1.0)._config(terms="")  # type: ignore[arg-type]
