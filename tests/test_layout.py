"""What holds for the repository as a whole: one name, one meaning; every page can be found."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("zk0", "tasks", "flows", "lerobot_policy_smolvla_bundled", "lerobot_robot_so101_simulated")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
DECISIONS = ROOT / "docs" / "decisions"
PATH = re.compile(r"`((?:zk0|tasks|flows|tests|docs|deployments|benchmarks|scripts)/[\w./*-]*(?:/|\.[a-z]+))`")


def public_names(path: Path) -> list[str]:
    """Public functions, classes, constants and type aliases that a module defines."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Assign(targets=targets):
                names += [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.TypeAlias(name=ast.Name(id=name)):
                names.append(name)
            case _:
                pass
    return [name for name in names if not name.startswith("_")]


def test_every_public_name_is_defined_once() -> None:
    defined = defaultdict(list)
    for path in MODULES:
        for name in public_names(path):
            defined[name].append(path.relative_to(ROOT).as_posix())
    assert {name: places for name, places in defined.items() if len(places) > 1} == {}


def test_every_file_name_occurs_once() -> None:
    files = defaultdict(list)
    for path in MODULES:
        files[path.name].append(path.relative_to(ROOT).as_posix())
    common = ("__init__.py", "main.py")
    assert {name: places for name, places in files.items() if len(places) > 1 and name not in common} == {}


def test_every_package_says_what_it_holds() -> None:
    empty = [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert [path.relative_to(ROOT).as_posix() for path in empty] == []


def test_the_index_of_decisions_lists_each_with_its_title() -> None:
    index = (DECISIONS / "index.md").read_text(encoding="utf-8")
    titles = {path: path.read_text(encoding="utf-8").splitlines()[0][2:] for path in DECISIONS.glob("[0-9]*.md")}
    rows = [f"| {path.name[:4]} | [{title}]({path.name}) |" for path, title in titles.items()]
    assert [row for row in rows if row not in index] == []
    assert len({path.name[:4] for path in titles}) == len(titles)


def test_the_index_of_docs_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    wanted = [page for page in pages if page != "index.md" and not Path(page).name[:4].isdigit()]
    assert [page for page in wanted if f"({page})" not in index] == []


def test_paths_that_docs_name_exist() -> None:
    pages = [page for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if page.name != "CHANGELOG.md"]
    named = {(page.name, path) for page in pages for path in PATH.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 50
    assert sorted((page, path) for page, path in named if not list(ROOT.glob(path))) == []
