"""Names, types and shapes of the tensors in a policy's file; no tensor is read, and none is downloaded."""

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from zk0.errors import PolicyError, first_line
from zk0.hub_outages import HUB_ERRORS, hub_outage
from zk0.records import Record

_FILE = "model.safetensors"
_BITS_OF_BOOL = 8
_MAX_HEADER_BYTES = 100_000_000


class StoredTensor(Record):
    """One tensor in a file; `dtype` is safetensors' name, such as BF16.

    >>> [StoredTensor(dtype=name, shape=(4, 2)).stored_bytes for name in ("BF16", "BOOL", "F8_E5M2")]
    [16, 8, 8]
    """

    dtype: str = Field(pattern=r"^(BOOL|[A-Z]{1,4}[0-9]{1,3}(_[A-Z0-9]{1,8})?)$")
    shape: tuple[Annotated[int, Field(ge=0, le=10**12)], ...] = Field(max_length=64)

    @property
    def values(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all values."""
        found = re.search("[0-9]+", self.dtype)
        return self.values * (int(found[0]) if found else _BITS_OF_BOOL) // 8


def read_stored_tensors(path: str, revision: str | None = None) -> dict[str, StoredTensor]:
    """Return the tensors that a policy's file lists: of a folder, of the Hub's cache, else of the Hub.

    From the Hub only the beginning of the file is fetched.

    Raises:
        PolicyError: there is no such file, or it is no safetensors file.
        HubUnavailable: the Hub cannot be reached now.
    """
    file = local_weights_file(path, revision)
    try:
        entries = _header_on_hub(path, revision) if file is None else _header_of(file)
        return {name: StoredTensor(**entry) for name, entry in entries.items()}
    except (*HUB_ERRORS, ValueError, TypeError, LookupError, RecursionError) as e:
        raise hub_outage(e, path) or PolicyError(
            f"{path}: the list of tensors of {_FILE} cannot be read ({type(e).__name__}: {first_line(e, 120)}); "
            "expected `tiny`, `base`, a folder saved by lerobot, or a name on the Hub that can be reached"
        ) from e


def local_weights_file(path: str, revision: str | None = None) -> Path | None:
    """Return the file with a policy's weights if this machine has it: in its folder, or in the Hub's cache."""
    if (local := Path(path)).is_dir():
        return local / _FILE
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, _FILE, revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _header_of(file: Path) -> Mapping[str, Any]:
    import json

    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"{length} bytes of header, expected at most {_MAX_HEADER_BYTES}")
        entries = json.loads(handle.read(length))
    if not isinstance(entries, dict):
        raise ValueError(f"a header of type {type(entries).__name__}, expected an object")
    return {n: {k: e[k] for k in ("dtype", "shape")} for n, e in entries.items() if n != "__metadata__"}


def _header_on_hub(path: str, revision: str | None) -> Mapping[str, Any]:
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        found = HfApi(endpoint=constants.ENDPOINT).parse_safetensors_file_metadata(path, _FILE, revision=revision)
    except (httpx.HTTPError, SafetensorsParsingError) as e:
        raise OSError(first_line(e)) from e
    return {name: {"dtype": one.dtype, "shape": tuple(one.shape)} for name, one in found.tensors.items()}
