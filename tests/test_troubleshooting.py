"""Every message that docs/troubleshooting.md explains exists in the source."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
EXPLAINED = re.findall(r"^`([^`]*)`(?: or .*)?\n: ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def literal(node: ast.AST) -> str:
    """Return the text of a string in the source, with `\\0` for each value of an f-string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return ""


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """All strings of the project's source."""
    files = [path for package in ("zk0", "tasks", "flows") for path in (ROOT / package).rglob("*.py")]
    return [literal(node) for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def test_the_page_explains_something() -> None:
    assert len(EXPLAINED) > 20


@pytest.mark.parametrize("message", EXPLAINED)
def test_the_message_exists_in_the_source(message: str, messages: list[str]) -> None:
    pattern = re.compile(".*?".join(re.escape(part) for part in re.split(r" ?… ?", message)), re.DOTALL)
    assert any(pattern.search(text) for text in messages)
