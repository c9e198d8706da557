"""The rule for buffers: only parameters are trained and sent, so no buffer of a policy may change in training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zk0.errors import PolicyError


@contextmanager
def unchanged_buffers(policy: Any) -> Iterator[None]:
    """Check on exit that the block changed no buffer; if it did, the buffers get their values back.

    Raises:
        PolicyError: names the buffers that changed.
    """
    before = {name: buffer.detach().clone() for name, buffer in policy.named_buffers()}
    yield
    now = dict(policy.named_buffers())
    changed = [name for name, old in before.items() if not torch.equal(now[name], old)]
    with torch.no_grad():
        for name in changed:
            now[name].copy_(before[name])
    if changed:
        raise PolicyError(
            f"training changed {len(changed)} buffers of a policy of type {policy.config.type} (first: {changed[0]}); "
            "zk0 sends parameters only, so it cannot train this type"
        )
