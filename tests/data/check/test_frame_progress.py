"""Check and repair report each frame that they decode."""

import io

import pytest
from defects import CASES

from flows.cli import frame_progress_display
from flows.cli.frame_progress_display import shown_frames
from tasks.events import frame_log_lines
from zk0.data.check import check_dataset
from zk0.data.repair.repair_dataset import repair_dataset


def test_every_frame_of_every_video_is_reported(healthy) -> None:
    seen: list[tuple[str, int, int]] = []
    check_dataset(healthy, dataset="x", progress=lambda *event: seen.append(event))
    compared = [("comparing episodes", n, 48) for n in (12, 24, 36, 48)]
    assert seen == [("checking", n, 96) for n in range(1, 97)] + compared


def test_the_quick_check_reports_only_comparisons(healthy) -> None:
    seen: list[tuple[str, int, int]] = []
    check_dataset(healthy, dataset="x", quick=True, progress=lambda *event: seen.append(event))
    assert seen == [("comparing episodes", n, 48) for n in (12, 24, 36, 48)]


def test_stored_images_count_too(breaker) -> None:
    CASES["a_stored_image_that_is_broken"][1](breaker)
    seen: list[tuple[str, int, int]] = []
    check_dataset(breaker.root, dataset="x", progress=lambda *event: seen.append(event))
    assert ("checking", 96, 96) in seen


@pytest.mark.parametrize(
    ("name", "again"),
    [("every_row_twice", []), ("a_video_with_uneven_times", [("checking the copy", 48, 48)])],
    ids=["videos stay the same bytes", "one video is written anew"],
)
def test_a_repair_decodes_the_original_and_the_new_videos_of_the_copy(breaker, name, again) -> None:
    CASES[name][1](breaker)
    seen: list[tuple[str, int, int]] = []
    target = breaker.root.with_name("repaired")
    repair_dataset(breaker.root, target, dataset="x", progress=lambda *event: seen.append(event))
    compared = ("comparing episodes", 48, 48)
    done = [event for event in seen if event[1] == event[2]]
    assert done == [("checking the original", 96, 96), compared, *again, compared]


@pytest.mark.parametrize(
    ("seconds", "lines"), [(0.0, ["checking: 1 of 2 frames", "checking: 2 of 2 frames"]), (1e9, [])]
)
def test_lines_where_the_output_is_no_terminal(monkeypatch, seconds, lines) -> None:
    monkeypatch.setattr(frame_progress_display, "SECONDS_BETWEEN_LINES", seconds)
    output = io.StringIO()
    with shown_frames(output) as progress:
        progress("checking", 1, 2)
        progress("checking", 2, 2)
    assert output.getvalue().splitlines() == lines


def test_a_bar_in_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    output = Terminal()
    with shown_frames(output) as progress:
        progress("checking the copy", 30, 40)
    assert "checking the copy, frames" in output.getvalue()
    assert "30/40" in output.getvalue()


def test_a_flow_logs_lines(caplog) -> None:
    from loguru import logger

    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(str(message.record["message"])))
    frame_log_lines("x", seconds_between=0.0)("checking", 3, 4)
    frame_log_lines("x")("checking", 4, 4)
    logger.remove(handler)
    assert lines == ["x: checking, 3 of 4 frames"]
