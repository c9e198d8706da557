"""Logs of a node: no words of others change the terminal that shows them, or look like lines of the log."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.bot.process_view import print_log
from zk0.log_text import clean_traceback, escape_controls

SCRIPT = """
import logging, sys, threading
from pathlib import Path
from flwr.app import ConfigRecord, RecordDict
from loguru import logger
from zk0.federation.flower.private_api import new_message
from zk0.federation.protocol.client_app import _recorded_answer
from zk0.federation.protocol.client_log import client_log
from zk0.log_text import write_clean_logs
from zk0.settings.dataset_settings import ClientSettings

HOSTILE = "bad\\x1b[2J\\x1b]0;owned\\x07\\r\\n2026-01-01 00:00:00.000 | INFO     | 1 | forged\\u2028\\u202eback"

class Odd(str):
    def __repr__(self):
        return HOSTILE

def work(message, config):
    held = Odd("x")
    try:
        raise ValueError(HOSTILE)
    except ValueError as e:
        raise ExceptionGroup(HOSTILE, [KeyError(held), RuntimeError(HOSTILE)]) from e

write_clean_logs()
scratch = Path(sys.argv[1])
client = ClientSettings(name="a", dataset="local:x").model_dump_json()
config = {"remote": True, "scratch": str(scratch), "client": client}
content = RecordDict({"config": ConfigRecord({"terms": "{}"})})
message = new_message(1, content, 1, "query", 60.0, "g")
with client_log(scratch):
    _recorded_answer(message, config, work)
    logging.getLogger("transformers").warning(HOSTILE)
    try:
        work(None, None)
    except ExceptionGroup:
        logging.getLogger("datasets").exception(HOSTILE)
thread = threading.Thread(target=work, args=(None, None))
thread.start()
thread.join()
raise ValueError(HOSTILE)
"""


def test_tracebacks_and_lines_of_libraries_forge_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, timeout=200)
    log = (tmp_path / "client.log").read_bytes().decode()
    assert log.count(r"ValueError: bad\x1b[2J\x1b]0;owned\x07\r\n2026-01-01 00:00:00.000 | INFO") == 2
    assert log.count("RuntimeError: bad") == 2
    assert re.search(r'File "<string>", line \d+, in work', log)  # the traceback has its lines
    printed = done.stderr.decode()
    assert printed.count("ValueError: bad") >= 4  # of the log, the thread and the end of the process
    for text in (log, printed):
        lines = text.split("\n")
        assert not [line for line in lines if re.match(r"\s*2026-01-01 00:00:00", line)]
        assert not [c for line in lines for c in line if c != "\t" and not c.isprintable()]
    assert done.returncode == 1


def test_a_chain_of_errors_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert clean_traceback(first) == "ValueError: first\n\nCaused by, or together with:\n\nValueError: second"


@pytest.mark.parametrize("text", ["plain text, ä and 漢", "tab\tonly", ""])
def test_honest_text_stays(text: str) -> None:
    assert escape_controls(text) == text


def test_a_log_of_another_program_is_printed_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "supernode.log").write_bytes(b"one\x1b[2J\x9b\xff\ntwo\r\x07\nno end")
    print_log([tmp_path / "supernode.log"], "supernode", 10, follow=False)
    shown = capsys.readouterr().out
    assert shown.split("\n")[0].startswith(r"one\x1b[2J")
    assert not [c for c in shown if c != "\n" and not c.isprintable()]
    assert shown.endswith("no end")
