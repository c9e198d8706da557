"""`zk0 audit` finds records of a session that contradict each other."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.main import zk0_app
from zk0.audit.card_root import CardRoot
from zk0.audit.ledger import Ledger
from zk0.audit.ledger_heads import HeadSigner, read_heads, write_heads
from zk0.audit.signing_key import SigningKey
from zk0.records import RoundRecord
from zk0.storage.session_folder import SessionFolder


def audit(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(zk0_app, ["audit", *map(str, arguments)], env={"COLUMNS": "1000"})
    return done.exit_code, done.output


@pytest.fixture
def signed(finished_session: Callable[..., SessionFolder], tmp_path: Path) -> tuple[SessionFolder, SigningKey]:
    """A session with signed heads, and a model card that states its ledger's root."""
    here, key = finished_session(), SigningKey(tmp_path / "ledger.key", tmp_path / "ledger.pub")
    HeadSigner(here.ledger, here.name, key).signed()
    root = Ledger(here.ledger).root()
    (here.checkpoint(20) / "README.md").write_text(f"# Policy\n\n{CardRoot(round=20, root=root).line()}\n")
    return here, key


def test_records_that_fit_each_other(signed: tuple[SessionFolder, SigningKey], tmp_path: Path) -> None:
    here, key = signed
    code, text = audit(here.path, "--key", key.public_hex())
    assert code == 0, text
    assert (
        f"ok      ledger_heads.jsonl: its heads are those of the ledger, signed by the key {key.public_hex()[:16]}"
        in text
    )
    assert "ok      models/checkpoint_round_20/README.md: its ledger root is that of the round" in text
    assert "signatures not checked" in audit(here.path)[1]
    node = tmp_path / "node.jsonl"
    write_heads(node, read_heads(here.path / "ledger_heads.jsonl")[3:5])
    assert audit(here.path, "--heads", node)[0] == 0
    assert audit(here.checkpoint(20), "--ledger", here.ledger)[0] == 0


def rewritten(here: SessionFolder, kept: int) -> None:
    """Replace the lines of a ledger from one on by valid ones of another history."""
    ledger, records = Ledger(here.ledger), Ledger(here.ledger).read()
    lines = here.ledger.read_bytes().splitlines()[:kept]
    here.ledger.write_bytes(b"".join(line + b"\n" for line in lines))
    for record in records[kept:]:
        ledger.append(record.model_copy(update={"seconds": record.seconds + 1}))


CHANGES: dict[str, tuple[Callable[[SessionFolder], Any], list[str]]] = {
    "a removed end": (
        lambda here: here.ledger.write_bytes(b"".join(here.ledger.read_bytes().splitlines(keepends=True)[:-1])),
        ["has a head of 21 lines, the ledger has 20: its end was removed", "states a root of round 20"],
    ),
    "another end": (
        lambda here: rewritten(here, 20),
        ["the first 21 lines of the ledger are not those of its head", "states root"],
    ),
    "another history": (lambda here: rewritten(here, 0), ["the first 1 lines of the ledger are not", "states root"]),
    "another card": (
        lambda here: (here.checkpoint(20) / "README.md").write_text(CardRoot(round=20, root="0" * 64).line()),
        ["states root 000000000000 of round 20"],
    ),
    "a card with two roots": (
        lambda here: (here.checkpoint(20) / "README.md").write_text(
            2 * (CardRoot(round=20, root="0" * 64).line() + "\n")
        ),
        ["states 2 ledger roots, expected one"],
    ),
    "a damaged ledger": (lambda here: os.truncate(here.ledger, 300) or here.ledger.open("a").write("\n"), ["line 1"]),
    "heads of nobody": (
        lambda here: (here.path / "ledger_heads.jsonl").write_text("{}\n"),
        ["not a file of ledger heads"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_records_that_contradict(change: str, signed: tuple[SessionFolder, SigningKey]) -> None:
    here, key = signed
    work, problems = CHANGES[change]
    work(here)
    code, text = audit(here.path, "--key", key.public_hex())
    assert code == 1
    for problem in problems:
        assert problem in text


def test_a_node_was_shown_another_history(signed: tuple[SessionFolder, SigningKey], tmp_path: Path) -> None:
    """Ledger and heads of the server fit each other; the node has a head that it signed before."""
    here, key = signed
    node = tmp_path / "node.jsonl"
    write_heads(node, read_heads(here.path / "ledger_heads.jsonl")[-1:])
    rewritten(here, 20)
    (here.path / "ledger_heads.jsonl").unlink()
    (here.checkpoint(20) / "README.md").unlink()
    HeadSigner(here.ledger, here.name, key).signed()
    assert audit(here.path, "--key", key.public_hex())[0] == 0
    code, text = audit(here.path, "--key", key.public_hex(), "--heads", node)
    assert (code, "the first 21 lines of the ledger are not those of its head" in text) == (1, True)


def test_heads_that_the_key_did_not_sign(signed: tuple[SessionFolder, SigningKey]) -> None:
    here, _ = signed
    code, text = audit(here.path, "--key", "ab" * 32)
    assert (code, "21 of 21 heads are not signed by the key abab" in text) == (1, True)


def test_an_update_that_is_not_in_the_list_of_its_round(
    finished_session: Callable[..., SessionFolder], tmp_path: Path
) -> None:
    here = finished_session()
    record = Ledger(here.ledger).read()[-1]
    last = RoundRecord.model_validate(
        record.model_dump() | {"round": 21, "updates_root": "0" * 64, "checkpoint": record.checkpoint.model_dump()}
    )
    Ledger(here.ledger).append(last)
    code, text = audit(here.path)
    assert (code, "WRONG   round 21: its updates have another root" in text) == (1, True)


@pytest.mark.parametrize("made", ["empty", "policy"])
def test_a_folder_without_a_ledger(made: str, tmp_path: Path) -> None:
    if made == "policy":
        (tmp_path / "README.md").write_text("# A policy")
    code, text = audit(tmp_path)
    assert (code, "no ledger.jsonl; expected a session, or a saved policy" in text) == (2, True)
    assert audit(tmp_path, "--ledger", tmp_path / "none.jsonl")[0] == 2
