"""A short measurement of a machine's speed: single layers with the sizes of the policy, random weights, no download."""

import math
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor, nn

from zk0.policy.policy_shapes import LayerStack, PolicyShapes
from zk0.resources.policy_work import layer_work
from zk0.resources.run_time import Speed
from zk0.settings.training_settings import LocalTrainingSettings

_REPEATS = 3
_OPTIMIZED = 4_000_000
"""Parameters that the measured optimizer updates."""


def measure_speed(shapes: PolicyShapes, cameras: int, training: LocalTrainingSettings, on_gpu: bool) -> Speed:
    """Return how fast one client's process computes, in a few seconds.

    Args:
        shapes: of the policy.
        cameras: images of a frame.
        training: number of threads, and whether a GPU computes in bf16.
        on_gpu: measure the GPU instead of the CPU.
    """
    device = torch.device("cuda" if on_gpu else "cpu")
    frames = 32 if on_gpu else 2
    frozen = torch.bfloat16 if shapes.value_bytes == 2 else torch.float32
    threads = torch.get_num_threads()
    torch.set_num_threads(training.torch_threads)
    try:
        tokens, steps = cameras * shapes.image_tokens + shapes.task_tokens, shapes.chunk + 1
        return Speed(
            vision=_forward_speed(shapes.vision, (frames, shapes.patches), frozen, device),
            text=_forward_speed(shapes.text, (frames, tokens), frozen, device),
            expert=_training_speed(
                shapes.expert, (frames, steps), tokens, device, in_bf16=on_gpu and bool(training.amp)
            ),
            optimizer=_optimizer_speed(device),
            source=f"measured on layers of the policy's sizes, {device.type}, {training.torch_threads} thread(s)",
        )
    finally:
        torch.set_num_threads(threads)


class _Layer(nn.Module):
    """A transformer layer: attention to its own tokens and to `context` further ones, and a feed-forward part."""

    def __init__(self, stack: LayerStack, context: int) -> None:
        super().__init__()
        self._heads = math.gcd(max(stack.query_width // 64, 1), stack.query_width)
        self._head = stack.query_width // self._heads
        self._groups = max(stack.key_width // self._head, 1)
        self.norms = nn.ModuleList([nn.LayerNorm(stack.width) for _ in range(2)])
        keys = self._groups * self._head
        self.query = nn.Linear(stack.width, stack.query_width, bias=False)
        self.key, self.value = nn.Linear(stack.width, keys, bias=False), nn.Linear(stack.width, keys, bias=False)
        self.out = nn.Linear(stack.query_width, stack.width, bias=False)
        self.up = nn.ModuleList([nn.Linear(stack.width, stack.hidden, bias=False) for _ in range(stack.matrices - 1)])
        self.down = nn.Linear(stack.hidden, stack.width, bias=False)
        self._context = context

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norms[0](x)
        query, key, value = (self._split(part(normed)) for part in (self.query, self.key, self.value))
        if self._context:
            further = torch.zeros(*key.shape[:2], self._context, self._head, dtype=key.dtype, device=key.device)
            key, value = torch.cat([further, key], dim=2), torch.cat([further, value], dim=2)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        normed = self.norms[1](x)
        hidden = nn.functional.silu(self.up[0](normed))
        for more in self.up[1:]:
            hidden = hidden * more(normed)
        return x + self.down(hidden)

    def _split(self, x: Tensor) -> Tensor:
        """(batch, heads, tokens, head width)."""
        return x.reshape(*x.shape[:2], -1, self._head).transpose(1, 2)


def _forward_speed(stack: LayerStack, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> float:
    layer, frames = _Layer(stack, 0).to(device, dtype), torch.randn(*shape, stack.width, dtype=dtype, device=device)
    with torch.inference_mode():
        seconds = _fastest(lambda: layer(frames), device)
    return shape[0] * layer_work(stack, shape[1], shape[1]) / seconds


def _training_speed(
    stack: LayerStack, shape: tuple[int, int], context: int, device: torch.device, in_bf16: bool
) -> float:
    layer = _Layer(stack, context).to(device)
    frames = torch.randn(*shape, stack.width, device=device, requires_grad=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            loss = layer(frames).float().square().mean()
        torch.autograd.backward(loss)

    seconds = _fastest(step, device)
    return 3 * shape[0] * layer_work(stack, shape[1], shape[1] + context) / seconds


def _optimizer_speed(device: torch.device) -> float:
    weights = nn.Parameter(torch.zeros(_OPTIMIZED, device=device))
    weights.grad = torch.ones_like(weights)
    adamw = torch.optim.AdamW([weights], fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_([weights], 1e9)
        adamw.step()

    return _OPTIMIZED / _fastest(step, device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of several runs; the first one, which allocates memory, does not count."""
    seconds = []
    for _ in range(1 + _REPEATS):
        started = perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - started)
    return min(seconds[1:])
