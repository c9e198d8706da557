"""Tokens: from the environment, from `.env`, or from a Secret block of the Prefect server."""

from typing import cast

from prefect.blocks.system import Secret
from pydantic import SecretStr


def load_secret(name: str) -> SecretStr | None:
    """Return the environment variable `name`, or that of `.env`, or the Secret block; None where none is set.

    The block has the same name in kebab case: `hf-token` for HF_TOKEN. Hold the value in a local variable of a task,
    never in a parameter: Prefect stores parameters in clear.
    """
    from zk0.publish.tokens import find_secret

    if found := find_secret(name):
        return found
    try:
        block = cast("Secret[str]", Secret.load(name.lower().replace("_", "-")))
    except ValueError:  # no such block
        return None
    return SecretStr(str(block.get()))
