"""Server and node store the heads of each other's journals: a removed end is found by the other side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from typer.testing import CliRunner

from flows.bot.main import zk0bot_app
from zk0.audit.hash_chain import last_line_digest
from zk0.audit.journal import ReceivedJournal, SentJournal
from zk0.audit.journal_heads import JournalHead, journal_problem
from zk0.audit.signing_key import SigningKey
from zk0.errors import LedgerError
from zk0.federation.flower.private_api import new_message
from zk0.federation.network.node import NodeFolder
from zk0.federation.network.server import ServerFolder, ServerSettings
from zk0.federation.protocol.collect import Federation
from zk0.federation.protocol.exchange import parse_reply
from zk0.federation.protocol.received_log import ReceivedLog
from zk0.federation.protocol.sent_log import record_sent, with_journal_head
from zk0.federation.protocol.shown_journals import (
    JOURNAL,
    check_journal_file,
    client_heads,
    client_journal_problems,
    parse_journal_head,
    server_journal_problem,
)


class Pair:
    """A server and a node in one home, which exchange requests and answers without a network."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.server, self.node = ServerFolder(home / "server"), NodeFolder(home / "client")
        self.server.init(ServerSettings(hosts=("127.0.0.1",)))
        self.node.install_kit(self.server.enroll("arm"))
        self.sent = SentJournal(self.node.scratch / "sent.jsonl")
        self.received = ReceivedJournal(self.server.path / "accepted.jsonl")
        self.log = ReceivedLog(self.received.path, "s")

    def request(self, session: str = "s", **values: str) -> Message:
        """Return a request as a federation of the server makes it."""
        values = {"terms": json.dumps({"session": session}), **values}
        config = Federation(None, ("arm",), 1.0, log=self.log)._config(**values)  # type: ignore[arg-type]
        return new_message(1, RecordDict({"config": config}), 1, "query", 60.0, "join")

    def exchange(self, request: Message | None = None, **answer: Any) -> None:
        """Let the node answer a request, and the server record the answer."""
        reply = self.answered(request, **answer)
        self.log.record(reply, ("join", None), refusal=reply.error)

    def answered(self, request: Message | None = None, **answer: Any) -> Any:
        """Let the node answer a request, and return what arrives at the server."""
        request = request or self.request()
        content = RecordDict({"answer": ConfigRecord(answer or {"done": True})})
        content = with_journal_head(content, self.node.scratch)
        record_sent(request, content, self.node.scratch)
        return parse_reply("arm", Message(content, reply_to=request), "late")

    def run(self, *command: str) -> tuple[int, str]:
        result = CliRunner().invoke(zk0bot_app, [*command, "--home", str(self.home)])
        return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path / "home")


def head_of(lines: list[bytes], key: SigningKey) -> JournalHead:
    return JournalHead.of(len(lines), last_line_digest(lines), key)


def cut(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in path.read_bytes().splitlines()[:lines]))


def test_each_side_stores_the_other_ones_heads(pair: Pair, log_lines: list[str]) -> None:
    for _ in range(3):
        pair.exchange()
    pair.exchange(refusal="no data")
    received, sent = pair.received.read(), pair.sent.read()
    assert [one.client_journal.lines for one in received if one.client_journal] == [0, 1, 2, 3]
    assert [one.server_journal.lines for one in sent if one.server_journal] == [0, 1, 2, 3]
    assert received[3].client_journal == head_of(pair.sent.path.read_bytes().splitlines()[:3], pair.sent._key)
    assert (server_journal_problem(sent), client_journal_problems(received)) == ("", {})
    check_journal_file(pair.sent, client_heads(received)["arm"])
    code, text = pair.run("server", "audit")
    assert (code, "journal of arm: 4 heads came with its answers; none contradicts" in text) == (0, True), text
    code, text = pair.run("client", "audit")
    assert (code, "4 heads came with 4 requests; none contradicts" in text) == (0, True), text
    assert log_lines == []


@pytest.mark.parametrize("left", [0, 1, 3])
def test_the_server_finds_a_removed_end_of_a_nodes_journal(pair: Pair, left: int, log_lines: list[str]) -> None:
    """Chain and signatures of what is left are valid, and so are those of a line that is added then."""
    for _ in range(4):
        pair.exchange()
    cut(pair.sent.path, left)
    pair.log = ReceivedLog(pair.received.path, "s")  # also of a session that was resumed meanwhile
    pair.exchange()
    assert pair.sent.read()
    wanted = f"it had at least 4 lines, and then {left}: its end was removed"
    assert client_journal_problems(pair.received.read()) == {"arm": wanted}
    assert [line.strip() for line in log_lines] == [f"the journal of arm is not the one that it was: {wanted}"]
    code, text = pair.run("server", "audit")
    state = f"journal of arm: 5 heads came with its answers; not the one that it was: {wanted}"
    assert (code, state in text) == (1, True), text
    code, text = pair.run("server", "audit", "--sent", str(pair.sent.path), "--client", "arm")
    assert code == 1


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_node_finds_a_removed_end_of_the_servers_journal(pair: Pair, left: int, log_lines: list[str]) -> None:
    for _ in range(5):
        pair.exchange()
    cut(pair.received.path, left)
    pair.exchange()
    wanted = f"it had at least 4 lines, and then {left}: its end was removed"
    assert server_journal_problem(pair.sent.read()) == wanted
    assert [line.strip() for line in log_lines] == [
        f"the server's journal is not the one that it was: {wanted}; see zk0bot client audit"
    ]
    code, text = pair.run("client", "audit")
    assert (code, wanted in text) == (1, True), text


@pytest.mark.parametrize("side", ["sent", "received"])
@pytest.mark.parametrize("regrown", [False, True])
def test_the_file_shows_a_removed_end_that_has_grown_again(pair: Pair, side: str, regrown: bool) -> None:
    """Between two messages the number of lines may be the same: the file itself lacks the line of the head."""
    for _ in range(4):
        pair.exchange()
    journal: Any = getattr(pair, side)
    entries = journal.read()
    cut(journal.path, 2)
    for entry in entries[1:3] if regrown else ():
        journal.append(entry)
    received, sent = pair.received.path, pair.sent.path
    heads = {
        "sent": client_heads(pair.received.read()).get("arm", []),
        "received": [one.server_journal for one in pair.sent.read() if one.server_journal],
    }[side]
    with pytest.raises(LedgerError, match="its end was removed"):
        check_journal_file(journal, heads)
    command: tuple[str, ...] = ("client", "audit", "--received", str(received))
    if side == "sent":
        command = ("server", "audit", "--sent", str(sent), "--client", "arm")
    assert pair.run(*command)[0] == 1


def test_a_journal_that_was_begun_again_has_another_key(pair: Pair, log_lines: list[str]) -> None:
    for _ in range(2):
        pair.exchange()
    for file in (pair.sent.path, pair.sent.private_key, pair.sent.public_key):
        file.unlink()
    for _ in range(4):
        pair.exchange()
    assert client_journal_problems(pair.received.read())["arm"].startswith("it was begun again: its key was")
    assert len(log_lines) == 1


def test_requests_of_two_sessions_may_cross(pair: Pair) -> None:
    first = pair.request("one")
    for _ in range(2):
        pair.exchange(pair.request("two"))
    pair.exchange(first)
    assert server_journal_problem(pair.sent.read()) == ""


@pytest.mark.parametrize("cut_to", [None, 1])
def test_an_answer_that_a_later_one_has_overtaken_has_its_place(
    pair: Pair, cut_to: int | None, log_lines: list[str]
) -> None:
    """In buffered rounds; lines that are removed are found all the same."""
    pair.exchange()
    train, evaluate = pair.answered(), pair.answered()
    pair.log.record(evaluate, ("evaluate", 2))
    pair.log.record(train, ("train", 1), in_order=False)
    pair.exchange()
    received = pair.received.read()
    assert [one.client_journal.lines for one in received if one.client_journal] == [0, 2, 1, 3]
    assert [head.lines for head in client_heads(received)["arm"]] == [0, 1, 2, 3]
    assert (client_journal_problems(received), log_lines) == ({}, [])
    if cut_to is not None:
        cut(pair.sent.path, cut_to)
        pair.log.record(pair.answered(), ("train", 2), in_order=False)
        assert "its end was removed" in client_journal_problems(pair.received.read())["arm"]


@pytest.mark.parametrize("buffered", [True, False])
def test_a_request_that_a_later_one_has_overtaken_has_its_place(
    pair: Pair, buffered: bool, log_lines: list[str]
) -> None:
    plan = {"terms": {"session": "s"}, "round": 1, "buffered": buffered}
    late = pair.request(plan=json.dumps(plan))
    for _ in range(2):
        pair.exchange()
    pair.exchange(late)
    pair.exchange()
    assert [one.server_journal.lines for one in pair.sent.read() if one.server_journal] == [0, 1, 0, 3]
    wanted = "" if buffered else "it had at least 1 lines, and then 0: its end was removed"
    assert (server_journal_problem(pair.sent.read()), len(log_lines)) == (wanted, int(not buffered))


def forged(head: JournalHead) -> JournalHead:
    return head.model_copy(update={"lines": head.lines + 1})


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", "x" * 2000, '{"lines":1e400}', '{"lines":' + "9" * 500 + "}"],
)
def test_what_is_no_head_is_none(text: str, pair: Pair, log_lines: list[str]) -> None:
    assert parse_journal_head(text) is None
    pair.exchange(done=True)
    answer = RecordDict({"answer": ConfigRecord({"done": True, JOURNAL: text[:1000]})})
    pair.log.record(parse_reply("arm", Message(answer, reply_to=pair.request()), ""), ("join", None))
    assert pair.received.read()[-1].client_journal is None
    assert len(log_lines) == 1
    code, found = pair.run("server", "audit")
    assert (code, "arm: 1 answer came without a valid head of it, after one with a head" in found) == (1, True), found
    assert pair.run("server", "audit", "--json")[0] == 1


def without_head(request: Message, text: str | None) -> Message:
    values = {key: value for key, value in request.content["config"].items() if key != JOURNAL}
    values |= {} if text is None else {JOURNAL: text}
    return new_message(1, RecordDict({"config": ConfigRecord(values)}), 1, "query", 60.0, "join")


@pytest.mark.parametrize("text", [None, "", "{}"])
@pytest.mark.parametrize("session", ["s", "another"])
def test_a_server_that_shows_no_head_any_more(pair: Pair, text: str | None, session: str, log_lines: list[str]) -> None:
    """So it could hide that its journal has lost its end."""
    pair.exchange(without_head(pair.request(), text))
    assert (pair.run("client", "audit")[0], log_lines) == (0, [])
    pair.exchange()
    cut(pair.received.path, 1)
    for _ in range(2):
        pair.exchange(without_head(pair.request(session), text))
    wanted = "2 requests came without a valid head of it, after one with a head"
    assert server_journal_problem(pair.sent.read()) == wanted
    assert [line.strip() for line in log_lines] == [
        "the request has no valid head of the server's journal, and the last one had; see zk0bot client audit"
    ]
    code, found = pair.run("client", "audit")
    assert (code, wanted in found) == (1, True), found


def test_an_answer_that_refuses_needs_no_head(pair: Pair, log_lines: list[str]) -> None:
    """A node that reads no more requests for a while journals none, and so shows no head."""
    pair.log.record(pair.answered()._replace(journal=""), ("join", None))  # of a node that never has shown one
    pair.exchange()
    pair.exchange()
    refused = RecordDict({"answer": ConfigRecord({"refusal": "too many requests"})})
    reply = parse_reply("arm", Message(refused, reply_to=pair.request()), "late")
    pair.log.record(reply, ("join", None), refusal=reply.error)
    pair.exchange()
    assert (pair.run("server", "audit")[0], client_journal_problems(pair.received.read()), log_lines) == (0, {}, [])


@pytest.mark.parametrize(
    "change",
    [
        forged,
        lambda head: head.model_copy(update={"digest": "1" * 64}),
        lambda head: head.model_copy(update={"key": "1" * 64}),
        lambda head: head.model_copy(update={"signature": "0" * 128}),
    ],
)
def test_a_head_that_its_journal_has_not_signed(pair: Pair, change: Callable[[JournalHead], JournalHead]) -> None:
    pair.exchange()
    head = pair.sent.head()
    assert parse_journal_head(head.model_dump_json()) == head
    assert parse_journal_head(change(head).model_dump_json()) is None
    assert "is not signed" in journal_problem([change(head)])


def test_equal_length_and_other_content(pair: Pair) -> None:
    pair.exchange()
    lines = pair.sent.path.read_bytes().splitlines()
    one, other = (head_of(found, pair.sent._key) for found in (lines, [b"{}"]))
    assert journal_problem([one, other]) == "its 1 lines were changed"


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_removed_end_of_the_operators_journal_is_found(pair: Pair, left: int) -> None:
    """What is left has a valid chain and valid signatures, also after another act."""
    acts = pair.server.operations
    pair.log = ReceivedLog(pair.received.path, "s", acts)
    pair.exchange()
    pair.exchange()
    pair.server.enroll("leg")
    pair.server.revoke("leg")
    pair.exchange()
    pair.log = ReceivedLog(pair.received.path, "another", acts)
    pair.exchange()
    found = [one.operations and one.operations.lines for one in pair.received.read()]
    assert found == [2, None, 4, 4]
    assert pair.run("server", "audit")[0] == 0
    cut(acts.path, left)
    pair.server.enroll("foot")
    assert [act.act for act in acts.read()][-1] == "enroll"
    for command in (("server", "audit"), ("server", "audit", "--json")):
        code, text = pair.run(*command)
        assert (code, "operations.jsonl: has" in text, "its end was removed" in text) == (1, True, True), text
