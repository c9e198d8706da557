"""Every message that docs/troubleshooting.md explains is one that the code can say."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
EXPLAINED = re.findall(r"^`([^`]*)`(?: or .*)?\n: ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def literal(node: ast.AST) -> str:
    """The text of a string in the source, `\\0` for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return ""


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Every string of the project's source."""
    files = [path for room in ("zk0", "tasks", "flows") for path in (ROOT / room).rglob("*.py")]
    return [literal(node) for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def test_the_page_explains_something() -> None:
    assert len(EXPLAINED) > 20


@pytest.mark.parametrize("message", EXPLAINED)
def test_the_code_says_it(message: str, said: list[str]) -> None:
    pattern = re.compile(".*?".join(re.escape(part) for part in re.split(r" ?… ?", message)), re.DOTALL)
    assert any(pattern.search(text) for text in said)
