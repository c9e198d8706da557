"""Configuration and tokenizer of a vision-language model as texts, and as the folder that transformers loads."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

REQUIRED = ("config.json", "tokenizer.json")
OPTIONAL = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
MAX_BYTES = 32_000_000
"""Largest sum of all files; those of SmolVLM2 have 3.6 MB."""


def read_vlm_files(folder: Path) -> dict[str, str]:
    """Return the files of a folder that describe its vision-language model, by name; JSON is stored without spaces.

    Raises:
        ValueError: the folder lacks a file, or the files are too large.
    """
    files = {name: _compact(file) for name in (*REQUIRED, *OPTIONAL) if (file := folder / name).is_file()}
    check_vlm_files(files, str(folder))
    return files


def _compact(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return json.dumps(json.loads(text), separators=(",", ":")) if file.suffix == ".json" else text


def check_vlm_files(files: Mapping[str, str], where: str) -> None:
    """Raise ValueError if the files cannot be those of a vision-language model; they may come from anywhere.

    Args:
        files: texts by name.
        where: what holds them, for the message.
    """
    if missing := [name for name in REQUIRED if name not in files]:
        raise ValueError(f"{where}: no {' and no '.join(missing)}; expected the files of a vision-language model")
    if unknown := sorted(files.keys() - {*REQUIRED, *OPTIONAL}):
        raise ValueError(f"{where}: unknown file {unknown[0][:80]!r}; expected {', '.join((*REQUIRED, *OPTIONAL))}")
    if (size := sum(len(text.encode()) for text in files.values())) > MAX_BYTES:
        raise ValueError(f"{where}: {size} bytes, expected at most {MAX_BYTES}")


@contextmanager
def unpacked(files: Mapping[str, str], where: str) -> Iterator[str]:
    """Inside the block there is a folder with these files, which transformers can load; its path is the value.

    Raises:
        ValueError: the files cannot be those of a vision-language model.
    """
    check_vlm_files(files, where)
    with TemporaryDirectory(prefix="vlm-") as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        yield folder
