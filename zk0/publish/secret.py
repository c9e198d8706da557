"""Tokens: from the environment or from `.env` in the working directory; never written anywhere."""

import os
from pathlib import Path

from pydantic import SecretStr


def find_secret(name: str) -> SecretStr | None:
    """The value of an environment variable, or of the same name in `.env`; None where neither says anything."""
    from dotenv import dotenv_values

    value = os.environ.get(name) or dotenv_values(Path(".env")).get(name)
    return SecretStr(value) if value else None
