"""The card of a saved policy: what it is, what it learned from, how good it is, how to load it."""

import json
import re
from collections.abc import Mapping, Sequence

from zk0.errors import ReportError
from zk0.interval import Z_95
from zk0.public import last_component, public_name
from zk0.records import Evaluation, Member, RoundRecord
from zk0.report.figures import DASH, count, fixed, number, plus_minus
from zk0.report.markdown import escaped, table
from zk0.report.metrics import ordered
from zk0.report.verdict import verdict
from zk0.session import BASE, TINY, Session

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


def model_card(
    session: Session, members: Sequence[Member], history: Sequence[RoundRecord], ledger_root: str | None = None
) -> str:
    """README.md of the checkpoint of the history's last round, with the Hub's front matter.

    `ledger_root` is that of the ledger once this round is in it. The card names no path of this machine: a data set in
    a folder is shown by the folder's name.

    Raises:
        ReportError: no round is finished.
    """
    if not history:
        raise ReportError("a model card needs a finished round, found none")
    rows = ordered(history)
    last = rows[-1]
    parts = [
        _front_matter(session, members),
        f"# {escaped(session.name)}, round {last.round}",
        _what(session, members, last),
        "## How good it is\n\n" + " ".join(escaped(s) for s in verdict(rows, ()).sentences),
        _scores(session, last.evaluation),
        "## Data\n\n" + _data(session, members),
        "## How it was trained\n\n" + _settings(session, last),
        "## How to load it\n\n" + _loading(session),
        "## Which weights these are\n\n" + _digests(rows[0], last, ledger_root),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def hub_name(dataset: str) -> str | None:
    """The name of a data set or policy on the Hub, or None where it does not lie there.

    >>> hub_name("hf:lab/so101"), hub_name("lab/so101"), hub_name("local:/home/lab"), hub_name("a: b/c")
    ('lab/so101', 'lab/so101', None, None)
    """
    name = dataset.removeprefix("hf:")
    return name if _HUB_NAME.fullmatch(name) else None


def _front_matter(session: Session, members: Sequence[Member]) -> str:
    fields: dict[str, object] = {
        "license": "apache-2.0",
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "lerobot", "smolvla", "federated-learning", "so101", "zk0"],
    }
    if base := hub_name(session.policy.path):
        fields["base_model"] = base
    if datasets := sorted({name for m in members if (name := hub_name(m.dataset))}):
        fields["datasets"] = datasets
    # JSON strings and lists are YAML, and cannot break out of their line
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def _what(session: Session, members: Sequence[Member], last: RoundRecord) -> str:
    frames = sum(m.train_frames for m in members)
    if session.policy.path == TINY:
        start = "a small, randomly initialised SmolVLA (`tiny`, for trying things out)"
    elif session.policy.path == BASE:
        start = "a small SmolVLA, starting from the one that ships with zk0 (`base`)"
    else:
        start = f"SmolVLA, starting from {_policy_name(session)}"
    return (
        f"A SmolVLA policy for a robot arm with {len(session.contract.joints)} joints and the cameras "
        f"{', '.join(escaped(c) for c in session.contract.cameras)}, trained with zk0 by federated learning: "
        f"{len(members)} clients, {count(frames)} training frames, {last.round} of {session.rounds} rounds. "
        f"It is {start}. The recordings stayed with their clients; only weights, counts and moments travelled."
    )


def _policy_name(session: Session) -> str:
    name = hub_name(session.policy.path)
    shown = (
        f"[{name}](https://huggingface.co/{name})"
        if name
        else f"the folder {escaped(last_component(session.policy.path))}"
    )
    return shown + (f" at revision {escaped(session.policy.revision)}" if session.policy.revision else "")


def _scores(session: Session, judged: Evaluation | None) -> str:
    if judged is None:
        return "This round was not judged."
    unit = session.contract.units
    heads = ("data set (unseen)", "episodes", "frames", "policy loss ± 1.96 SE", f"mean action error ({unit})")
    rows = [
        (
            public_name(s.dataset),
            count(len(s.episodes)),
            count(s.frames),
            plus_minus(s.policy_loss, _half(s.policy_loss_se)),
            fixed(s.action_error_degrees, 2),
        )
        for s in judged.sets
    ]
    if len(judged.sets) > 1:
        mean = plus_minus(judged.policy_loss, _half(judged.policy_loss_se))
        rows.append(("mean over sets", DASH, DASH, mean, fixed(judged.action_error_degrees, 2)))
    how = (
        f"Round {judged.round}. The policy loss is the mean squared velocity error of flow matching (dimensionless), "
        f"over {judged.times} times per frame; its standard error is that of a ratio over episodes. The action error "
        f"is that of the whole predicted chunk, open loop. Normalisation: {escaped(judged.normalization)}; "
        f"seed {judged.seed}."
    )
    return f"{table(heads, rows)}\n\n{how}"


def _half(se: float | None) -> float | None:
    return None if se is None else Z_95 * se


def _data(session: Session, members: Sequence[Member]) -> str:
    heads = ("client", "data set", "training episodes", "training frames", "held-out episodes", "tasks")
    rows = [
        (
            m.client,
            public_name(m.dataset),
            count(len(m.split.train)),
            count(m.train_frames),
            count(len(m.split.held_out)),
            "; ".join(m.report.tasks) or DASH,
        )
        for m in members
    ]
    note = f"States and actions are in {session.contract.units}; a gripper runs from 0 to 100."
    return f"{table(heads, rows)}\n\n{note}"


def _settings(session: Session, last: RoundRecord) -> str:
    training = session.training
    steps = training.local_steps
    length = f"{steps} optimizer steps" if steps else f"{training.local_epochs} passes over the training frames"
    decided = last.decision
    rows: Mapping[str, str] = {
        "rounds": f"{last.round} of {session.rounds}",
        "what is trained": _trained(session),
        "a client's work in a round": length,
        "batch size": f"{training.batch_size} frames",
        "learning rate": number(training.lr) + (f" (last round {number(decided.lr)})" if decided else ""),
        "schedule": f"{session.scheduler.type}, down to {number(session.scheduler.eta_min)}",
        "FedProx mu": number(training.proximal_mu) + (f" (last round {number(decided.mu)})" if decided else ""),
        "optimizer": f"AdamW, betas {training.betas[0]} and {training.betas[1]}, eps {training.eps:g}, "
        f"weight decay {training.weight_decay:g}",
        "gradient clipping": f"L2 norm {number(training.grad_clip_norm)}",
        "precision": "bf16 autocast, fp32 weights" if training.amp else "fp32",
        "average": "weighted by training frames",
        "normalisation": "statistics pooled over clients" if session.normalization == "pooled" else "each client's own",
        "seed": str(session.seed),
    }
    return table(("setting", "value"), list(rows.items()))


def _trained(session: Session) -> str:
    training = session.training
    if training.adapters() is None:
        return "action expert and projections"
    return (
        f"LoRA on the action expert's matrices, rank {training.lora_rank}, alpha {training.lora_alpha}, "
        f"dropout {training.lora_dropout:g}, merged into these weights"
    )


def _loading(session: Session) -> str:
    if session.policy.path not in (TINY, BASE):
        return """```python
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

folder = "."  # this folder, or the name of this repository on the Hub
policy = SmolVLAPolicy.from_pretrained(folder)
preprocess, postprocess = make_pre_post_processors(policy.config, folder)
```"""
    return """The folder carries its tokenizer in `vlm/`; `config.json` names it relative to the folder. Inside of it:

```python
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

policy = SmolVLAPolicy.from_pretrained(".")
preprocess, postprocess = make_pre_post_processors(policy.config, ".")
```

From anywhere else:

```python
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

folder = "path/to/this/folder"
config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--vlm_model_name={folder}/vlm"])
policy = SmolVLAPolicy.from_pretrained(folder, config=config)
preprocess, postprocess = make_pre_post_processors(
    config, folder, preprocessor_overrides={"tokenizer_processor": {"tokenizer_name": f"{folder}/vlm"}}
)
```"""


def _digests(first: RoundRecord, last: RoundRecord, ledger_root: str | None) -> str:
    rows = [
        (f"round {first.round} (start)", first.checkpoint.digest),
        (f"round {last.round} (these)", last.checkpoint.digest),
    ]
    text = "Digests of the trained weights (BLAKE3):\n\n" + table(("weights", "digest"), rows)
    chained = f"Root of the session's ledger with round {last.round} as its last: `{ledger_root}`"
    return text if ledger_root is None else f"{text}\n\n{chained}"
