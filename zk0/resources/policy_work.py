"""Floating-point operations of a SmolVLA policy, from its sizes: a multiplication and an addition are two."""

from zk0.policy.policy_shapes import LayerStack, PolicyShapes
from zk0.records import Record


class PolicyWork(Record):
    """Operations for one frame, forward."""

    vision: float
    """Vision encoder and connector, on the images of all cameras."""
    text: float
    """Language model, on the tokens of images and task."""
    expert: float
    """Action expert, on one chunk of actions at one time."""


def policy_work(shapes: PolicyShapes, cameras: int) -> PolicyWork:
    """Return the operations of each part of a policy."""
    tokens = cameras * shapes.image_tokens + shapes.task_tokens
    connector = 2 * shapes.patches * shapes.vision.width * shapes.text.width
    return PolicyWork(
        vision=cameras * (shapes.vision.layers * layer_work(shapes.vision, shapes.patches, shapes.patches) + connector),
        text=shapes.text.layers * layer_work(shapes.text, tokens, tokens),
        expert=shapes.expert.layers * layer_work(shapes.expert, shapes.chunk + 1, tokens + shapes.chunk + 1),
    )


def layer_work(stack: LayerStack, tokens: int, keys: int) -> float:
    """Return the operations of one layer on so many tokens, each of which attends to `keys` tokens."""
    projections = 2.0 * tokens * stack.width * (2 * stack.query_width + 2 * stack.key_width)
    feed_forward = 2.0 * tokens * stack.width * stack.hidden * stack.matrices
    return projections + feed_forward + 4.0 * tokens * keys * stack.query_width


def activation_bytes(shapes: PolicyShapes, cameras: int, features: str) -> int:
    """Return the bytes that a training step keeps of each frame for the backward pass, estimated.

    With cached features that is the action expert, in float32; without, LeRobot's own forward pass keeps the language
    model's activations, too, because the state token has a gradient, and those of the vision encoder if it is trained.
    """
    tokens, steps = cameras * shapes.image_tokens + shapes.task_tokens, shapes.chunk + 1
    expert = 4 * shapes.expert.layers * _kept_values(shapes.expert, steps, tokens + steps)
    language = shapes.value_bytes * shapes.text.layers * tokens * (8 * shapes.text.width + 2 * shapes.text.hidden)
    images = cameras * shapes.patches * shapes.vision.layers if shapes.trains_vision else 0
    vision = shapes.value_bytes * images * (8 * shapes.vision.width + 2 * shapes.vision.hidden)
    return expert + (language + vision if features == "off" else 0)


_HEAD_WIDTH = 64
"""Of the published policy."""


def _kept_values(stack: LayerStack, tokens: int, keys: int) -> int:
    """Values of one layer: 16 of each token's width, 4 of the hidden layer's, and 3 attention matrices of each head."""
    heads = max(stack.query_width // _HEAD_WIDTH, 1)
    return tokens * (16 * stack.width + 4 * stack.hidden) + 3 * heads * tokens * keys
