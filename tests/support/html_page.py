"""Parser of the HTML pages, for tests of their content."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "source", "br", "hr", "input"}


@dataclass
class HtmlPage(HTMLParser):
    """Content of a page: tables by caption, text, tags."""

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    keys: dict[str, list[list[str]]] = field(default_factory=dict)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self._caption = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr" and self._caption:
            self.tables[self._caption].append([])
            self.keys[self._caption].append([])
        if tag in ("td", "th") and self._caption:
            self.tables[self._caption][-1].append("")
            self.keys[self._caption][-1].append(given.get("data-key") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"
        if tag == "table":
            self._caption = ""

    def handle_data(self, data: str) -> None:
        if "style" in self._open or "script" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self._caption = data
            self.tables[data], self.keys[data] = [], []
        elif self._caption and ("td" in self._open or "th" in self._open):
            self.tables[self._caption][-1][-1] += data

    def rows(self, caption: str) -> list[dict[str, str]]:
        """Rows of a table as cells by heading."""
        head, *body = self.tables[caption]
        assert all(len(row) == len(head) for row in body)
        return [dict(zip((" ".join(h.split()) for h in head), row, strict=True)) for row in body]


def read_page(path: Path) -> HtmlPage:
    """Parse a page, and check that all its tags are closed."""
    page = HtmlPage()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page._open == []
    return page
