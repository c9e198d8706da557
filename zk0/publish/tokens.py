"""Access tokens, read from the environment or from `.env` in the working directory; they are never written."""

import os
from pathlib import Path

from pydantic import SecretStr


def find_secret(name: str) -> SecretStr | None:
    """Value of an environment variable, or of the same name in `.env`; None if neither is set."""
    from dotenv import dotenv_values

    value = os.environ.get(name) or dotenv_values(Path(".env")).get(name)
    return SecretStr(value) if value else None
