"""What the tests of the base policy's scripts share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def base_scripts() -> Iterator[Path]:
    """The folder of the scripts that make the base policy, from which they can be imported."""
    folder = Path("scripts/base").resolve()
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
