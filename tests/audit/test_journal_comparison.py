"""A removed end of a journal is found in the other one."""

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.bot.main import zk0bot_app
from zk0.audit.journal import ReceivedAnswer, ReceivedJournal, SentJournal, SentMessage
from zk0.audit.journal_comparison import compare_journals
from zk0.federation.network.node import NodeFolder
from zk0.federation.network.server import ServerFolder, ServerSettings

AT = "2026-01-01T00:00:00+00:00"


def sent(number: int) -> SentMessage:
    return SentMessage(at=AT, to="s", kind="train", round=number, text=json.dumps({"n": number}))


def received(number: int, client: str = "arm", **more: str) -> ReceivedAnswer:
    text = hashlib.sha256(sent(number).text.encode()).hexdigest()
    return ReceivedAnswer.model_validate(
        {"at": AT, "session": "s", "client": client, "kind": "train", "round": number, "text": text} | more
    )


def test_equal_journals() -> None:
    others = received(9, client="other")
    found = compare_journals("arm", [sent(n) for n in range(3)], [others, *(received(n) for n in range(3))])
    assert (found.both, found.missing_at_client, found.missing_at_server) == (3, (), ())


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_removed_end(left: int) -> None:
    """Chain and signatures of what is left are valid."""
    all_sent, all_received = [sent(n) for n in range(3)], [received(n) for n in range(3)]
    names = tuple(f"train of round {n} of session s at {AT}" for n in range(left, 3))
    assert compare_journals("arm", all_sent[:left], all_received).missing_at_client == names
    assert compare_journals("arm", all_sent, all_received[:left]).missing_at_server == names


def test_an_answer_that_was_refused_or_late_is_not_missing() -> None:
    """The server has a line without a text."""
    found = compare_journals("arm", [sent(0), sent(1)], [received(0), received(1, text="", refusal="late")])
    assert (found.both, found.missing_at_server) == (1, ())


@pytest.fixture
def journals(tmp_path: Path) -> tuple[Path, SentJournal, ReceivedJournal]:
    """A server with a node, whose journals have three answers each."""
    server, node = ServerFolder(tmp_path / "home" / "server"), NodeFolder(tmp_path / "home" / "client")
    server.init(ServerSettings(hosts=("127.0.0.1",)))
    node.install_kit(server.enroll("arm"))
    ours, theirs = SentJournal(node.scratch / "sent.jsonl"), ReceivedJournal(server.path / "accepted.jsonl")
    for number in range(3):
        ours.append(sent(number))
        theirs.append(received(number))
    return tmp_path / "home", ours, theirs


def cut(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in path.read_bytes().splitlines()[:lines]))


def test_the_commands_find_a_removed_end(journals: tuple[Path, SentJournal, ReceivedJournal]) -> None:
    home, ours, theirs = journals

    def run(*command: str) -> tuple[int, str]:
        result = CliRunner().invoke(zk0bot_app, [*command, "--home", str(home)])
        return result.exit_code, " ".join(result.output.split())

    client = ("client", "audit", "--received", str(theirs.path))
    server = ("server", "audit", "--sent", str(ours.path), "--client", "arm")
    for command in (client, server):
        code, text = run(*command)
        assert (code, "arm: 3 answers are in both journals" in text) == (0, True), text
    cut(theirs.path, 1)
    code, text = run(*client)
    assert code == 0
    assert "2 answers that arm sent are not in the server's journal" in text
    cut(ours.path, 0)
    code, text = run(*server)
    assert code == 1
    assert "1 answer that the server received from arm is not in its journal" in text
