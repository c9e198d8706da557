"""Sizes of a policy: what memory, disk and time of a session follow from, known before a download."""

from collections.abc import Mapping, Sequence
from math import isqrt, prod
from typing import Any

from zk0.errors import PolicyError
from zk0.policy.published_config import SMOLVLA_TYPES, read_published_config, resolve_policy_path
from zk0.policy.scope import matching_names
from zk0.policy.smolvla.tiny_geometry import tiny_config
from zk0.policy.stored_tensors import StoredTensor, local_weights_file, read_stored_tensors
from zk0.records import Record
from zk0.settings.training_settings import TINY, TINY_ACT, TINY_DIFFUSION, PolicySettings
from zk0.weights.lora_factors import lora_targets

VLM_PREFIX = "model.vlm_with_expert.vlm."
"""Of the names of the tensors of SmolVLA's vision-language model."""
_EXPERT = "model.vlm_with_expert.lm_expert."
_VISION, _TEXT = f"{VLM_PREFIX}model.vision_model.", f"{VLM_PREFIX}model.text_model."
_LAYERS = f"{_TEXT}layers."
TASK_TOKENS = 31
"""Most tokens of a task text of 30 characters, with the line break that LeRobot adds."""


class LayerStack(Record):
    """The layers of one transformer."""

    layers: int
    width: int
    """Values of a token."""
    query_width: int
    """Values of all heads of a query."""
    key_width: int
    """Values of all heads of a key."""
    hidden: int
    """Width of the hidden layer."""
    matrices: int
    """Matrices of the feed-forward part: 2, or 3 with a gate."""


class PolicySizes(Record):
    """Sizes of any policy, from which disk space and traffic follow."""

    parameters: int
    trainable: int
    """Parameters that are trained and sent. Of other policies than SmolVLA, all values in the file: an upper bound."""
    frozen_bytes: int
    """Bytes of what is not trained, in memory and in a saved policy."""
    lora_sides: int
    """Sum of height and width of the matrices that LoRA changes: so many parameters for each rank."""
    download_bytes: int = 0
    """Bytes that are still to be downloaded."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the trainable weights, float32: the global weights of a round."""
        return 4 * self.trainable

    @property
    def saved_bytes(self) -> int:
        """Bytes of a saved policy."""
        return self.frozen_bytes + self.weight_bytes

    def feature_bytes(self, cameras: int, kind: str) -> int:
        """Bytes of the cached features of one frame; 0 where none are cached."""
        return 0


class PolicyShapes(PolicySizes):
    """Sizes of a SmolVLA policy, from which memory and time follow, too."""

    vision: LayerStack
    text: LayerStack
    expert: LayerStack
    patches: int
    """Tokens of one image in the vision encoder."""
    image_tokens: int
    """Tokens of one image in the language model."""
    task_tokens: int
    """Most tokens of a task."""
    value_bytes: int
    """Bytes of one value that the vision-language model computes."""
    chunk: int
    """Actions that are predicted at once."""
    denoising_steps: int
    trains_text: bool = False
    """Whether parameters of the language model are trained."""
    trains_vision: bool = False
    """Whether parameters of the vision encoder or the connector are trained."""

    def feature_bytes(self, cameras: int, kind: str) -> int:
        """Bytes of the cached features of one frame; 0 where none are cached."""
        if kind == "embeddings":
            return cameras * self.image_tokens * self.text.width * self.value_bytes
        tokens = cameras * self.image_tokens + self.task_tokens
        return 0 if kind == "off" else self.text.layers * 2 * tokens * self.text.key_width * self.value_bytes


TINY_SHAPES = PolicyShapes(
    parameters=532_000,
    trainable=194_976,
    frozen_bytes=4 * 337_024,
    lora_sides=5_120,
    vision=LayerStack(layers=2, width=64, query_width=64, key_width=64, hidden=128, matrices=2),
    text=LayerStack(layers=4, width=64, query_width=64, key_width=32, hidden=128, matrices=3),
    expert=LayerStack(layers=4, width=48, query_width=64, key_width=32, hidden=256, matrices=3),
    patches=144,
    image_tokens=9,
    task_tokens=TASK_TOKENS,
    value_bytes=4,
    chunk=tiny_config()["chunk_size"],
    denoising_steps=tiny_config()["num_steps"],
)
"""Of the policy `tiny`, which has no file."""
_TINY_SIZES: Mapping[str, PolicySizes] = {
    TINY: TINY_SHAPES,
    TINY_ACT: PolicySizes(parameters=11_215_414, trainable=11_215_414, frozen_bytes=78_336, lora_sides=0),
    TINY_DIFFUSION: PolicySizes(parameters=11_276_510, trainable=11_276_510, frozen_bytes=38_592, lora_sides=0),
}


def read_policy_sizes(policy: PolicySettings, trained: Sequence[str] = ()) -> PolicySizes:
    """Return the sizes of a session's policy, from its config.json and the list of tensors in its file.

    They are `PolicyShapes` if it is a SmolVLA policy.

    Args:
        policy: the settings.
        trained: patterns of the trained parameters; empty: the scope `expert`. Of a tiny policy, which has no file, all
            parameters then count as trained.

    Raises:
        PolicyError: these cannot be read, or are not those of a SmolVLA policy.
    """
    if policy.path in _TINY_SIZES:
        sizes = _TINY_SIZES[policy.path]
        return sizes.model_copy(update=_all_trained(sizes)) if trained else sizes
    path = resolve_policy_path(policy.path)
    config, tensors = read_published_config(path, policy.revision), read_stored_tensors(path, policy.revision)
    missing = local_weights_file(path, policy.revision) is None
    stored = sum(one.stored_bytes for one in tensors.values())
    download = stored if missing else 0
    if config.get("type") not in SMOLVLA_TYPES:
        values, chosen = sum(one.values for one in tensors.values()), matching_names(trained or ["*"], tensors)
        return PolicySizes(
            parameters=values,
            trainable=sum(tensors[name].values for name in chosen),
            frozen_bytes=sum(one.stored_bytes for name, one in tensors.items() if name not in chosen),
            lora_sides=0,
            download_bytes=download,
        )
    try:
        shapes = shapes_of_tensors(config, tensors, trained)
    except (KeyError, ValueError, TypeError) as e:
        raise PolicyError(f"{policy.path}: not the tensors of a SmolVLA policy ({type(e).__name__}: {e})") from e
    return shapes.model_copy(update={"download_bytes": download})


def shapes_of_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], patterns: Sequence[str] = ()
) -> PolicyShapes:
    """Return the sizes of the policy with this config.json and these tensors.

    Args:
        config: the content of config.json.
        tensors: of the policy's file.
        patterns: of the trained parameters; empty: the scope `expert`.
    """
    vlm = {name: one for name, one in tensors.items() if name.startswith(VLM_PREFIX)}
    own = {name: one for name, one in tensors.items() if name not in vlm}
    trained = _trained_tensors(tensors, patterns) if patterns else own
    trained_vlm = [name for name in trained if name in vlm]
    in_bf16 = config.get("load_vlm_weights") or any(one.dtype == "BF16" for one in vlm.values())
    value_bytes = 2 if in_bf16 and not trained_vlm else 4
    connector = tensors[f"{VLM_PREFIX}model.connector.modality_projection.proj.weight"]
    vision, text = _stack(vlm, f"{_VISION}encoder.layers."), _stack(vlm, f"{_TEXT}layers.")
    patch = tensors[f"{_VISION}embeddings.patch_embedding.weight"].shape[-1]
    patches = prod(side // patch for side in config["resize_imgs_with_padding"])
    return PolicyShapes(
        parameters=sum(one.values for one in tensors.values()),
        trainable=sum(one.values for one in trained.values()),
        frozen_bytes=sum(
            (value_bytes if name in vlm else 4) * one.values for name, one in tensors.items() if name not in trained
        ),
        lora_sides=sum(sum(tensors[name].shape) for name in lora_targets(own)),
        vision=vision,
        text=text,
        expert=_stack(own, f"{_EXPERT}layers."),
        patches=patches,
        image_tokens=patches // isqrt(connector.shape[1] // vision.width) ** 2,
        task_tokens=min(TASK_TOKENS, config["tokenizer_max_length"]),
        value_bytes=value_bytes,
        chunk=config["chunk_size"],
        denoising_steps=config["num_steps"],
        trains_text=any(name.startswith(_TEXT) for name in trained_vlm),
        trains_vision=any(not name.startswith(_TEXT) for name in trained_vlm),
    )


def _trained_tensors(tensors: Mapping[str, StoredTensor], patterns: Sequence[str]) -> dict[str, StoredTensor]:
    """The tensors that match, without those that LeRobot never trains: head, norm and last layer of the language model.

    So does LeRobot's `SmolVLMWithExpertModel.set_requires_grad`.
    """
    last = max(int(name.removeprefix(f"{_TEXT}layers.").split(".")[0]) for name in tensors if name.startswith(_LAYERS))
    never = (f"{VLM_PREFIX}lm_head.", f"{_TEXT}norm.", f"{_LAYERS}{last}.")
    return {name: tensors[name] for name in matching_names(patterns, tensors) if not name.startswith(never)}


def _all_trained(sizes: PolicySizes) -> dict[str, Any]:
    """The changes of sizes where all parameters are trained."""
    parts = {"trains_text": True, "trains_vision": True} if isinstance(sizes, PolicyShapes) else {}
    return {"trainable": sizes.parameters, "frozen_bytes": 0} | parts


def _stack(tensors: Mapping[str, StoredTensor], prefix: str) -> LayerStack:
    shapes = {n.removeprefix(f"{prefix}0."): one.shape for n, one in tensors.items() if n.startswith(f"{prefix}0.")}
    up = shapes["mlp.fc1.weight"] if "mlp.fc1.weight" in shapes else shapes["mlp.up_proj.weight"]
    return LayerStack(
        layers=len({n.removeprefix(prefix).split(".")[0] for n in tensors if n.startswith(prefix)}),
        width=up[1],
        query_width=shapes["self_attn.q_proj.weight"][0],
        key_width=shapes["self_attn.k_proj.weight"][0],
        hidden=up[0],
        matrices=3 if "mlp.gate_proj.weight" in shapes else 2,
    )
