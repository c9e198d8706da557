"""The report of a session as Markdown."""

import re
from base64 import b64decode
from typing import Any

from zk0.records import Arrival, BufferedRound, ClientAtWork, Refusal
from zk0.report.page.session_markdown import session_report_markdown


def test_markdown_has_the_same_content(facts: dict[str, Any]) -> None:
    text = session_report_markdown(**facts)
    assert len(text.encode()) < 1_000_000
    assert "The loss on unseen data fell by 46 %." in text
    assert "| 3 | 0.655 ± 0.047 | 9.15 ± 0.12 | 5e-05 | 0.0105 | 0.95 | 3 | 1 |" in text
    assert "NaN in model.action\\_out\\_proj.weight" in text
    images = re.findall(r"!\[[^\]]+\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", text)
    assert len(images) == 2
    assert all(b64decode(image).startswith(b"\x89PNG") for image in images)


def test_markdown_tables_keep_their_columns(facts: dict[str, Any]) -> None:
    bad = facts["history"][3].model_copy(update={"refusals": (Refusal(client="a|b", reason="x\n| y | <b>`"),)})
    text = session_report_markdown(**{**facts, "history": [*facts["history"][:3], bad]})
    line = next(line for line in text.splitlines() if "a\\|b" in line and line.startswith("| 3"))
    assert len(re.findall(r"(?<!\\)\|", line)) == 4
    assert "&lt;b&gt;\\`" in line


def test_markdown_has_staleness_and_waiting_time_of_buffered_rounds(facts: dict[str, Any]) -> None:
    assert "## Staleness" not in session_report_markdown(**facts)
    arrival = Arrival(client="c", began=1, factor=0.5, seconds=7.0, waited_seconds=2.0)
    buffered = BufferedRound(arrivals=(arrival,), at_work=(ClientAtWork(client="d", began=2),), ready=())
    last = facts["history"][3].model_copy(update={"buffered": buffered})
    text = session_report_markdown(**{**facts, "history": [*facts["history"][:3], last]})
    assert "## Staleness and waiting time" in text
    assert "| c | 1 | 0 | 2.00 | 2 | 0.500 | 7.00 | 2.00 | – |" in text
    assert "| d | 0 | 0 | – | – | – | – | – | 2 |" in text
