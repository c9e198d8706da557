"""A saved policy of a session is pushed: whole, with the very weights that the ledger names."""

from pathlib import Path

from pydantic import SecretStr

from zk0.errors import CheckpointError, PublishError
from zk0.folder import SessionFolder
from zk0.publish.hub import push_folder
from zk0.records import RoundRecord
from zk0.release import Release
from zk0.weights import digest, open_weights

PARTS = (
    "config.json",
    "model.safetensors",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
    "README.md",
    "metrics.json",
)
"""What plain lerobot needs to load a policy, and what people need to judge it."""


def push_checkpoint(here: SessionFolder, record: RoundRecord, release: Release, token: SecretStr | None) -> Release:
    """Push the saved policy of a round as one commit, with a tag of its own; what came of it.

    Raises:
        CheckpointError: the policy is not saved whole, or its weights are not those of the ledger.
        PublishError: no repository is named, or the Hub refuses.
        TransientError: the Hub does not answer; the same call may work later.
    """
    folder = here.checkpoint(record.round)
    check_saved(folder, here.weights(record.round), record)
    if release.repo_id is None:
        raise PublishError("no repository is named; expected publish.repo_id, or --repo-id user/name")
    why = release.reason if release.forced is None else f"{release.forced} (by hand; the rule says: {release.reason})"
    found = push_folder(
        folder,
        release.repo_id,
        private=release.private,
        revision=f"{here.name}_round_{record.round}",
        message=f"{here.name}, round {record.round}: {why}",
        token=token,
    )
    pushed = {"revision": found.revision, "commit": found.commit, "url": found.url}
    return release.model_copy(update={"outcome": "pushed", **pushed})


def check_saved(folder: Path, weights: Path, record: RoundRecord) -> None:
    """A policy's folder holds all its parts, and the trained weights of the round are in it, bit for bit.

    Raises:
        CheckpointError: they are not.
    """
    if missing := [name for name in PARTS if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder}: {', '.join(missing)} missing; expected the saved policy of a round")
    model = folder / "model.safetensors"
    with open_weights(weights) as trained, open_weights(model) as saved:
        if absent := sorted(set(trained) - set(saved)):
            raise CheckpointError(f"{model}: lacks {len(absent)} trained tensors, first: {absent[0]}")
        found = digest({name: saved[name] for name in trained})
    if found != record.checkpoint.digest:
        raise CheckpointError(
            f"{model}: digest of the trained weights {found[:12]}, expected {record.checkpoint.digest[:12]}: "
            f"not those of round {record.round}"
        )
