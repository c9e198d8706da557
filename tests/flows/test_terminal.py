"""What a session shows in a terminal, and where its output is none."""

import re
import signal

import pytest
import typer
from rich.progress import Progress

from flows.cli import terminal
from flows.cli.terminal import _ProgressBars, line_on_interrupt, session_progress
from tasks.events import ProgressEvent, emit_progress


def test_progress_is_plain_lines(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_LINE_SECONDS", 3600.0)
    with session_progress(quiet=False) as show_stage:
        show_stage("starting a Prefect server")
        emit_progress(ProgressEvent(kind="session_started", text="/data/outputs/mine"))
        for step in range(20):
            emit_progress(ProgressEvent(kind="optimizer_step", client="a", round=1, step=step, steps=20))
        monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)
        emit_progress(ProgressEvent(kind="optimizer_step", client="a", round=1, step=20, steps=20))
        emit_progress(ProgressEvent(kind="client_answered", client="a", round=1))
        emit_progress(ProgressEvent(kind="client_answered", client="b", round=1, text="no answer within 30 s"))
        emit_progress(ProgressEvent(kind="round_finished", round=1, rounds=3))
    lines = capfd.readouterr().err.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    assert [line[9:] for line in lines] == [
        "starting a Prefect server",
        "session folder /data/outputs/mine",
        "round 1: a 20 of 20 steps",
        "round 1: a answered",
        "round 1: b refused: no answer within 30 s",
        "round 1 of 3 done",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_with_one_line(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as ended, line_on_interrupt(lambda: "; run it again"):
        signal.raise_signal(number)
    assert ended.value.exit_code == 128 + number
    assert capsys.readouterr().err == "zk0: stopped; run it again\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_client_that_began_in_an_earlier_round_does_not_change_the_rounds_number() -> None:
    progress = Progress()
    bars = _ProgressBars(progress)
    bars.update(ProgressEvent(kind="round_finished", round=2, rounds=5))
    for client, began in (("a", 3), ("b", 1)):
        bars.update(ProgressEvent(kind="optimizer_step", client=client, round=began, step=3, steps=20))
    assert [(task.description, task.completed) for task in progress.tasks] == [
        ("round 3: clients train", 2),
        ("  a", 3),
        ("  b since round 1", 3),
    ]
