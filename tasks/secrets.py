"""Tokens where they are needed: from the environment, from `.env`, or from a Secret block of the Prefect server."""

from typing import cast

from prefect.blocks.system import Secret
from pydantic import SecretStr


def secret(name: str) -> SecretStr | None:
    """The environment variable `name`, the same in `.env`, or the block of that name in kebab case; None for none.

    HF_TOKEN is the block `hf-token`. The value is a task's local, never its parameter: those are stored in clear.
    """
    from zk0.publish.secret import find_secret

    if found := find_secret(name):
        return found
    try:
        block = cast("Secret[str]", Secret.load(name.lower().replace("_", "-")))
    except ValueError:  # no such block
        return None
    return SecretStr(str(block.get()))
