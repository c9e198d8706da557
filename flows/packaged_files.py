"""Session files, pools and deployments that ship with zk0: in a clone those of the repository, else of the wheel."""

import re
import shutil
from difflib import get_close_matches
from pathlib import Path

from zk0.errors import SettingsError

PACKAGED = ("deployments/sessions", "deployments/pools")
"""Folders that are part of the wheel, beside prefect.yaml."""
_ENTRYPOINT = re.compile(r"entrypoint: flows/(\w+)\.py:(\w+)")


def packaged_root() -> Path:
    """Return the folder with `deployments/` and prefect.yaml."""
    in_wheel = Path(__file__).parent / "project"
    return in_wheel if in_wheel.is_dir() else Path(__file__).parents[1]


def find_session_file(config: Path) -> Path:
    """Return the session file: the path itself, or the one of this name that ships with zk0.

    `demo` and `deployments/sessions/demo.toml` both name the demo's, also outside of a clone.

    Raises:
        SettingsError: a bare name is no session of zk0.
    """
    shipped = packaged_root() / "deployments" / "sessions"
    if config.is_file() or config.is_absolute():
        return config
    if config.parent == Path("deployments/sessions") and (shipped / config.name).is_file():
        return shipped / config.name
    if config.suffix or len(config.parts) > 1:
        return config
    if not (found := shipped / f"{config.name}.toml").is_file():
        names = sorted(file.stem for file in shipped.glob("*.toml"))
        near = get_close_matches(config.name, names, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"{config}: no such file, and no session of zk0 ({', '.join(names)}){meant}")
    return found


def write_project(folder: Path) -> list[Path]:
    """Write session files, pools and prefect.yaml into a folder, to be edited and run there; return what was written.

    Raises:
        SettingsError: a file exists already.
    """
    root = packaged_root()
    sources = [file for part in PACKAGED for file in sorted((root / part).iterdir())] + [root / "prefect.yaml"]
    targets = [folder / file.relative_to(root) for file in sources]
    if there := [target for target in targets if target.exists()]:
        raise SettingsError(f"{there[0]}: exists already; choose a new folder")
    for source, target in zip(sources, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    _name_modules(folder / "prefect.yaml")
    return targets


def _name_modules(deployments: Path) -> None:
    """Name each flow by its module: outside of a clone there is no file flows/NAME.py."""
    text = _ENTRYPOINT.sub(r"entrypoint: flows.\1.\2", deployments.read_text(encoding="utf-8"))
    deployments.write_text(text.replace("the root of a clone", "this one"), encoding="utf-8")
