"""Model card of a saved policy: description, results, data, training settings, loading and digests (README.md)."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zk0.audit.card_root import CardRoot
from zk0.data.check.quality import describe_quality
from zk0.errors import ReportError
from zk0.records import Member, Rollout, RoundRecord, StatisticsGroup
from zk0.report.card_groups import group_section
from zk0.report.conclusions import session_conclusions
from zk0.report.metrics import sorted_by_round
from zk0.report.next_commands import policy_commands
from zk0.report.number_format import DASH, count, fixed, number
from zk0.report.policy_text import policy_text
from zk0.report.tables.group_tables import still_joints_note
from zk0.report.tables.markdown import escape_markdown, markdown_table
from zk0.report.tables.rollout_tables import task_table
from zk0.report.tables.table import mean_cell
from zk0.settings.session import Session
from zk0.settings.training_settings import BASE, BUILT_IN_POLICIES
from zk0.stats.task_means import cross_task_loss, generalization_gap
from zk0.storage.redaction import last_component, public_name
from zk0.weights.digests import algorithm_name

_PRECISIONS = {
    True: "bf16 autocast, fp32 weights",
    False: "fp32",
    "auto": "fp32 on CPUs, bf16 autocast on GPUs that have it; fp32 weights",
}
"""By `training.amp`."""
_NORMALIZATIONS = {
    "policy": "the statistics that the start policy carries",
    "pooled": "statistics pooled over clients",
    "client": "per client",
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


class CardProof(NamedTuple):
    """Digests by which a checkpoint can be verified."""

    ledger_root: str
    """Root of the ledger that ends with the checkpoint's round."""
    files: Mapping[str, str]
    """SHA-256 of each file by name, but of the card and of metrics.json."""
    frozen_digest: str | None
    """SHA-256 of the weights that are not trained."""


def model_card(
    session: Session,
    members: Sequence[Member],
    history: Sequence[RoundRecord],
    proof: CardProof | None = None,
    groups: Sequence[StatisticsGroup] = (),
    rollouts: Sequence[Rollout] = (),
    dataset_notes: Sequence[str] = (),
    policy_type: str = "smolvla",
) -> str:
    """README.md of the checkpoint of the history's last round, with the Hub's front matter.

    The card contains no path of this machine: a dataset in a local folder is named by its last path component.

    Args:
        session: its settings.
        members: the clients.
        history: up to the round of the checkpoint.
        proof: digests by which the checkpoint can be verified; None: only those of the weights.
        groups: statistics by joints and units, the default group first.
        rollouts: closed-loop attempts of models up to this round.
        dataset_notes: on the datasets beside each other.
        policy_type: LeRobot's type of the policy.

    Raises:
        ReportError: no round is finished.
    """
    if not history:
        raise ReportError("a model card needs a finished round, found none")
    rows = sorted_by_round(history)
    last = rows[-1]
    parts = [
        _front_matter(session, members, policy_type),
        f"# {escape_markdown(session.name)}, round {last.round}",
        _description(session, members, last, policy_type),
        "## Results\n\n" + " ".join(escape_markdown(s) for s in session_conclusions(rows, rollouts).sentences),
        _scores(session, last, policy_type),
        _attempts(rollouts),
        "## Data\n\n" + _data(session, members),
        "\n".join(f"- {escape_markdown(note)}" for note in dataset_notes),
        still_joints_note(session, groups),
        group_section(groups),
        "## Training\n\n" + _settings(session, rows, policy_type),
        "## Loading\n\n" + _loading(session, members, policy_type),
        "## Digests of the weights\n\n" + _digests(rows[0], last),
        "" if proof is None else "## Files\n\n" + _files(last, proof),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def hub_name(dataset: str) -> str | None:
    """Name of a dataset or policy on the Hub; None if it is not on the Hub.

    >>> hub_name("hf:lab/so101"), hub_name("lab/so101@v2"), hub_name("local:/home/lab"), hub_name("a: b/c")
    ('lab/so101', 'lab/so101', None, None)
    """
    name = dataset.removeprefix("hf:").partition("@")[0]
    return name if _HUB_NAME.fullmatch(name) else None


def _front_matter(session: Session, members: Sequence[Member], policy_type: str) -> str:
    fields: dict[str, object] = {
        "license": "apache-2.0",
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "lerobot", policy_type, "federated-learning", "so101", "zk0"],
    }
    if base := hub_name(session.policy.path):
        fields["base_model"] = base
    if datasets := sorted({name for m in members if (name := hub_name(m.dataset))}):
        fields["datasets"] = datasets
    # JSON strings and lists are YAML, and cannot break out of their line
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def _description(session: Session, members: Sequence[Member], last: RoundRecord, policy_type: str) -> str:
    frames, title = sum(m.train_frames for m in members), escape_markdown(policy_text(policy_type).title)
    if session.policy.path in BUILT_IN_POLICIES and session.policy.path != BASE:
        start = f"a tiny, randomly initialized {title} (`{session.policy.path}`, for tests)"
    elif session.policy.path == BASE:
        start = "the small SmolVLA that ships with zk0 (`base`)"
    else:
        start = _policy_name(session)
    return (
        f"{'An' if title == 'ACT' else 'A'} {title} policy for a robot arm with {len(session.contract.joints)} joints "
        f"and the cameras {', '.join(escape_markdown(c) for c in session.contract.cameras)}, trained with zk0 by "
        f"federated learning: "
        f"{len(members)} clients, {count(frames)} training frames, {last.round} of {session.rounds} rounds. "
        f"Training started from {start}. The recordings stayed with the clients: they sent weights, counts and moments "
        "of their data, and losses only."
    )


def _policy_name(session: Session) -> str:
    name = hub_name(session.policy.path)
    shown = (
        f"[{name}](https://huggingface.co/{name})"
        if name
        else f"the folder {escape_markdown(last_component(session.policy.path))}"
    )
    return shown + (f" at revision {escape_markdown(session.policy.revision)}" if session.policy.revision else "")


def _attempts(rollouts: Sequence[Rollout]) -> str:
    """Table of the closed-loop attempts by task; empty where none was made."""
    if not rollouts:
        return ""
    headings, rows = task_table(rollouts).as_text()
    note = "Attempts in closed loop in the simulator, each from a seed of its own; smoothness is 0 for a smooth path."
    return f"{markdown_table(headings, rows)}\n\n{note}"


def _scores(session: Session, record: RoundRecord, policy_type: str) -> str:
    evaluation = record.evaluation
    if evaluation is None:
        return "This round was not evaluated."
    unit = session.contract.units
    headings = (
        "dataset (unseen)",
        "episodes",
        "frames",
        "policy loss ± 95 %",
        f"action error ({unit}) ± 95 %",
        "unseen by",
    )
    rows = [
        (
            public_name(s.dataset),
            count(len(s.episodes)),
            count(s.frames),
            mean_cell(s, "policy_loss", 3).text,
            mean_cell(s, "action_error_degrees", 2).text,
            s.unseen_by or DASH,
        )
        for s in evaluation.sets
    ]
    if len(evaluation.sets) > 1:
        loss, error = mean_cell(evaluation, "policy_loss", 3), mean_cell(evaluation, "action_error_degrees", 2)
        rows.append(("mean over sets", DASH, DASH, loss.text, error.text, DASH))
    note = (
        f"Round {evaluation.round}. ± is half the width of the 95 % interval over episodes (Student's t). The policy "
        f"loss is {policy_text(policy_type).loss} (dimensionless), over "
        f"{evaluation.times} times per frame. The action error is the mean absolute error of the predicted chunk, open "
        f"loop. Normalization: {escape_markdown(evaluation.normalization)}; seed {evaluation.seed}."
    )
    if (gap := generalization_gap(record)) is not None:
        mean = fixed(cross_task_loss(record), 3)
        note += (
            f" Mean policy loss over clients' held-out episodes and unseen datasets: {mean}; unseen minus held out "
            f"(generalization gap): {fixed(gap, 3)}."
        )
    return f"{markdown_table(headings, rows)}\n\n{note}"


def _data(session: Session, members: Sequence[Member]) -> str:
    headings = (
        "client",
        "dataset",
        "training episodes",
        "training frames",
        "held-out episodes",
        "tasks",
        "data quality",
    )
    rows = [
        (
            m.client,
            public_name(m.dataset),
            count(len(m.split.train)),
            count(m.train_frames),
            count(len(m.split.held_out)),
            "; ".join(m.report.tasks) or DASH,
            describe_quality(m.report),
        )
        for m in members
    ]
    units = "the units of their group" if session.contract.other_groups else session.contract.units
    note = f"States and actions are in {units}; gripper positions are from 0 to 100."
    return f"{markdown_table(headings, rows)}\n\n{note}"


def _settings(session: Session, history: Sequence[RoundRecord], policy_type: str) -> str:
    training, first, last = session.training, history[0], history[-1]
    steps = training.local_steps
    length = f"{steps} optimizer steps" if steps else f"{training.local_epochs} passes over the training frames"
    decision = last.decision
    rows: Mapping[str, str] = {
        "rounds": f"{last.round} of {session.rounds}",
        "trained weights": _trained(session, policy_type) + _kept_by_clients(session),
        "local training per round": length,
        "batch size": f"{training.batch_size} frames",
        "learning rate": number(training.lr) + (f" (last round {number(decision.lr)})" if decision else ""),
        "schedule": f"{session.scheduler.type}, minimum {number(session.scheduler.eta_min)}",
        "FedProx mu": number(training.proximal_mu) + (f" (last round {number(decision.mu)})" if decision else ""),
        "optimizer": f"AdamW, betas {training.betas[0]} and {training.betas[1]}, eps {training.eps:g}, "
        f"weight decay {training.weight_decay:g}",
        "gradient clipping": f"L2 norm {number(training.grad_clip_norm)}",
        "precision": _PRECISIONS[training.amp],
        "aggregation": _aggregation(session),
        "normalization": _NORMALIZATIONS[first.evaluation.normalization if first.evaluation else "pooled"],
        "seed": str(session.seed),
    }
    return markdown_table(("setting", "value"), list(rows.items()))


def _aggregation(session: Session) -> str:
    strategy = session.aggregation.strategy
    is_weighted = strategy == "fedavg" and not session.aggregation.noise_multiplier
    text = f"{strategy}, weighted by training frames" if is_weighted else strategy
    return f"{text}; secure aggregation: the server learned sums of updates only" if session.federation.secure else text


def _kept_by_clients(session: Session) -> str:
    """Which parameters are the start policy's here, because each client has its own; empty without such ones."""
    if not (personal := session.training.personal):
        return ""
    return f", without {', '.join(personal)}: each client has its own, and here they are those of the start policy"


def _trained(session: Session, policy_type: str) -> str:
    training = session.training
    if isinstance(training.scope, tuple):
        return f"the parameters that match {', '.join(training.scope)}"
    if training.scope == "all":
        return "all parameters"
    if training.scope == "expert":
        return policy_text(policy_type).trained
    return (
        f"LoRA on the action expert's matrices, rank {training.lora_rank}, alpha {training.lora_alpha}, "
        f"dropout {training.lora_dropout:g}, merged into these weights"
    )


def _loading(session: Session, members: Sequence[Member], policy_type: str) -> str:
    plugin = (
        ""
        if hub_name(session.policy.path) or policy_type != "smolvla"
        else " Its vision-language model is not on the Hub: configuration and tokenizer are in `config.json` and "
        "`policy_preprocessor.json`, which LeRobot reads where the plugin `lerobot_policy_smolvla_bundled`, a part of "
        "zk0, is installed."
    )
    return f"""LeRobot's commands (`lerobot-eval`, `lerobot-train`, `lerobot-rollout`) take this folder, or the name of
its repository on the Hub, as `--policy.path`.{plugin} zk0's commands take it, too:

{_commands(session, members)}

In Python:

{_SNIPPET}"""


def _commands(session: Session, members: Sequence[Member]) -> str:
    """The next commands with this folder."""
    blocks = (f"{title}:\n\n```\n{command}\n```" for title, command in policy_commands(session, members, "FOLDER"))
    return "\n\n".join(blocks)


_SNIPPET = """```python
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

register_third_party_plugins()
folder = "."  # this folder, or the name of this repository on the Hub
config = PreTrainedConfig.from_pretrained(folder)
policy = get_policy_class(config.type).from_pretrained(folder)
on_device = {"device_processor": {"device": config.device}}
preprocess, postprocess = make_pre_post_processors(config, folder, preprocessor_overrides=on_device)
```"""


def _digests(first: RoundRecord, last: RoundRecord) -> str:
    rows = [
        (f"round {first.round} (start)", first.checkpoint.digest),
        (f"round {last.round} (this checkpoint)", last.checkpoint.digest),
    ]
    algorithm = algorithm_name(last.checkpoint.digest)
    return f"Digests of the trained weights ({algorithm}):\n\n" + markdown_table(("weights", "digest"), rows)


def _files(last: RoundRecord, proof: CardProof) -> str:
    rows = [(escape_markdown(name), digest) for name, digest in sorted(proof.files.items())]
    frozen = f"\n\nThe frozen weights have the SHA-256 `{proof.frozen_digest}`." if proof.frozen_digest else ""
    return (
        "SHA-256 of each file; the Hub shows that of a large file as its oid. `sha256sum --check SHA256SUMS` checks "
        f"all files, `zk0 verify FOLDER` also the trained weights.\n\n{markdown_table(('file', 'SHA-256'), rows)}"
        f"{frozen}\n\n{CardRoot(round=last.round, root=proof.ledger_root).line()}"
    )
