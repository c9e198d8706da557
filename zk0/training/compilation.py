"""Whether the layers of the action expert are compiled for the training steps of a round."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec

from loguru import logger

from zk0.errors import first_line
from zk0.settings.training_settings import LocalTrainingSettings

BACKEND = "inductor"
"""Of `torch.compile`; it needs Triton and a C compiler."""
_FIRST_WITH_TRITON = (7, 0)
"""Compute capability from which Triton compiles for NVIDIA's GPUs (Volta)."""
_LEAST_STEPS = 200
"""Compiling takes a minute or two: shorter rounds cannot save them."""
_LEAST_GAIN = 1.05


def compile_backend(
    training: LocalTrainingSettings,
    capability: tuple[int, int] | None,
    steps: int,
    gradient_seconds: Callable[[str | None], float],
) -> str | None:
    """The backend that compiles the action expert; None: nothing is compiled.

    With `training.compile` `auto`, a long round on a GPU measures a gradient with and without, and takes the faster
    way; never with `training.deterministic`, because the measurement may end differently in each run.

    Args:
        training: its `compile` and `deterministic` count.
        capability: of the GPU, from `compute_capability`; None: a CPU.
        steps: of the round.
        gradient_seconds: measures the gradient of one batch with a backend, which is compiled before.
    """
    if training.compile != "auto":
        return BACKEND if training.compile else None
    if training.features == "off" or training.deterministic or steps < _LEAST_STEPS or not _can_compile(capability):
        return None
    try:
        compiled = gradient_seconds(BACKEND)
    except RuntimeError as e:  # of the compiler, which has no common type for its errors
        logger.warning("the action expert is not compiled ({}: {})", type(e).__name__, first_line(e, 200))
        return None
    plain = gradient_seconds(None)
    wins = plain > _LEAST_GAIN * compiled
    decided = "compiled" if wins else "not compiled"
    logger.info("gradient of a batch: {:.1f} ms, compiled {:.1f} ms: {}", plain * 1e3, compiled * 1e3, decided)
    return BACKEND if wins else None


def _can_compile(capability: tuple[int, int] | None) -> bool:
    has_compiler = find_spec("triton") is not None and any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    return capability is not None and capability >= _FIRST_WITH_TRITON and has_compiler
