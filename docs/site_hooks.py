"""Hooks of the documentation site: the API reference and the pages that lie at the root of the repository.

- `reference/PACKAGE.md` is generated from docstrings for each package of zk0, tasks, flows and the plugin of LeRobot, a
  section a module.
- README.md, CONTRIBUTING.md, SECURITY.md and CHANGELOG.md become pages of the site.
- Links to files outside docs/ (source, session files) become plain text: the site does not contain them.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]*)\]\((?P<target>[^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the two lists of the navigation that follow from files: the reference and the decisions."""
    decisions = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    lists = {
        "reference/": [{package: f"reference/{package}.md"} for package in packages()],
        "decisions/": ["decisions/index.md", *(f"decisions/{name}" for name in decisions)],
    }
    config.nav = _filled(config.nav, lists)
    return config


def _filled(entry: Any, lists: dict[str, list[Any]]) -> Any:
    if isinstance(entry, dict):
        return {title: _filled(below, lists) for title, below in entry.items()}
    if isinstance(entry, list):
        return [_filled(below, lists) for below in entry]
    return lists.get(entry, entry)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for package in packages():
        files.append(File.generated(config, f"reference/{package}.md", content=reference_page(package)))
    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=from_root(text)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave docs/ into plain text, except those to pages that the site adds."""
    folder = Path(page.file.src_uri).parent

    def replace(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or ":" in target:
            return match[0]
        path = (ROOT / "docs" / folder / target).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return match[0]
        inside = path.relative_to(ROOT).as_posix()
        if inside in ROOT_PAGES:
            up = "../" * len(folder.parts)
            return f"[{match['text']}]({up}{ROOT_PAGES[inside]}{'#' + anchor if anchor else ''})"
        return match["text"] if match["text"].strip("`") == inside else f"{match['text']} (`{inside}`)"

    return LINK.sub(replace, markdown)


def packages() -> list[str]:
    """Names of the packages of the reference, such as `zk0.weights`: those of zk0, then tasks, flows and the plugin."""
    inner = sorted(path.parent.name for path in (ROOT / "zk0").glob("*/__init__.py"))
    return ["zk0", *(f"zk0.{name}" for name in inner), "tasks", "flows", "lerobot_policy_smolvla_bundled"]


def reference_page(package: str) -> str:
    """The Markdown of a package's page: its docstring, then a section for each of its modules."""
    folder = ROOT / package.replace(".", "/")
    below = "*.py" if package == "zk0" else "**/*.py"
    modules = sorted(path for path in folder.glob(below) if path.name != "__init__.py")
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    lines = [f"# {package}", "", about, ""]
    for path in modules:
        if public_names(path):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            lines += [f"## {name}", "", f"::: {name}", "    options: {show_root_heading: false, heading_level: 3}", ""]
    return "\n".join(lines)


def public_names(path: Path) -> list[str]:
    """Public functions and classes of a module; a module without any has no section."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def from_root(text: str) -> str:
    """A page of the repository's root as one of docs/: its links point one folder lower."""

    def replace(match: re.Match[str]) -> str:
        target = match["target"]
        if ":" in target or target.startswith("#"):
            return match[0]
        return f"[{match['text']}]({target.removeprefix('docs/') if target.startswith('docs/') else '../' + target})"

    images = re.sub(r"!\[([^\]]*)\]\(docs/", r"![\1](", text)
    return LINK.sub(replace, images)
