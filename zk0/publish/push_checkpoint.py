"""Push a saved policy of a session to the Hub, after a check of its files and weights against the ledger."""

from pathlib import Path

from pydantic import SecretStr

from zk0.audit.policy_digests import recorded_policy_files
from zk0.errors import CheckpointError, PublishError
from zk0.publish.hub import push_policy_folder
from zk0.records import RoundRecord
from zk0.rules.release import Release
from zk0.storage.session_folder import SessionFolder
from zk0.storage.sha256_sums import SUMS_FILE, renew_sums, sha256_of_file, sha256_of_folder
from zk0.weights.digests import algorithm_of, digest
from zk0.weights.files import open_weights

POLICY_FILES = (
    "config.json",
    "model.safetensors",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
    "README.md",
    "metrics.json",
    SUMS_FILE,
)
"""Files that LeRobot needs to load the policy, the model card, the metrics, and the SHA-256 of all files."""


def push_checkpoint(here: SessionFolder, record: RoundRecord, release: Release, token: SecretStr | None) -> Release:
    """Push the saved policy of a round as one commit with its own tag, and return the release record with its outcome.

    Raises:
        CheckpointError: a file of the policy is missing or was changed, or its weights differ from the ledger.
        LedgerError: the record of the digests was changed.
        PublishError: no repository is set, or the Hub refuses the push.
        TransientError: the Hub does not respond; the same call may succeed later.
    """
    folder = here.checkpoint(record.round)
    check_saved_policy(here, record)
    files = renew_sums(folder, editable=("README.md",))
    files[SUMS_FILE] = sha256_of_file(folder / SUMS_FILE)
    if release.repo_id is None:
        raise PublishError("no repository is set; expected publish.repo_id, or --repo-id user/name")
    reason = release.reason
    if release.force_reason is not None:
        reason = f"{release.force_reason} (by hand; release rule: {release.reason})"
    found = push_policy_folder(
        folder,
        release.repo_id,
        private=release.private,
        revision=f"{here.name}_round_{record.round}",
        message=f"{here.name}, round {record.round}: {reason}",
        token=token,
    )
    pushed = {"revision": found.revision, "commit": found.commit, "url": found.url}
    return release.model_copy(update={"outcome": "pushed", "files": files, **pushed})


def check_saved_policy(here: SessionFolder, record: RoundRecord) -> None:
    """Check that the saved policy of a round has all files, the weights of that round, and the recorded SHA-256.

    Files that a person has added are not looked at.

    Raises:
        CheckpointError: a file or tensor is missing, the weights differ, or a file is not the recorded one.
        LedgerError: the record of the digests was changed.
    """
    folder = here.checkpoint(record.round)
    if missing := [name for name in POLICY_FILES if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder}: {', '.join(missing)} missing; expected the saved policy of a round")
    _check_trained_weights(folder / "model.safetensors", here.weights(record.round), record)
    if not (recorded := recorded_policy_files(here, record)):
        raise CheckpointError(
            f"{folder}: the session has no recorded SHA-256 of this policy; expected a policy that the session saved. "
            f"Remove the folder and {here.report.name}, and save it again: zk0 run --resume {here.path}"
        )
    found = sha256_of_folder(folder)
    if changed := sorted(name for name, known in recorded.items() if found.get(name) != known):
        raise CheckpointError(
            f"{folder}: {', '.join(changed)}: not the SHA-256 that the session recorded; restore the files from a copy"
        )


def _check_trained_weights(model: Path, weights: Path, record: RoundRecord) -> None:
    with open_weights(weights) as trained, open_weights(model) as saved:
        if absent := sorted(set(trained) - set(saved)):
            raise CheckpointError(f"{model}: lacks {len(absent)} trained tensors, first: {absent[0]}")
        found = digest({name: saved[name] for name in trained}, algorithm_of(record.checkpoint.digest))
    if found != record.checkpoint.digest:
        raise CheckpointError(
            f"{model}: digest of the trained weights {found[:12]}, expected {record.checkpoint.digest[:12]}: "
            f"not those of round {record.round}"
        )
