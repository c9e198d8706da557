"""What a person should know about the datasets of a session beside each other; nothing of it keeps a dataset out."""

from collections.abc import Iterator, Sequence
from itertools import chain

from zk0.data.path_sketches import SketchedDataset, find_near_copies
from zk0.evaluation.session_setup import EvaluationSet
from zk0.evaluation.zero_offsets import zero_offsets
from zk0.name_lists import join_names
from zk0.records import Member
from zk0.storage.redaction import public_name

LISTED = 5
"""Most clients that a note names."""
MAX_NOTES = 20
"""Most notes of a kind: another zero position, a shared task. Near copies: MAX_LISTED_DATASETS in each comparison."""


def dataset_notes(members: Sequence[Member], sets: Sequence[EvaluationSet], joints: Sequence[str]) -> tuple[str, ...]:
    """Return the notes on all clients' datasets and the evaluation sets, each of one sentence.

    Args:
        members: what the clients reported.
        sets: the server's evaluation sets.
        joints: names of the dimensions of the state.
    """
    return (
        *_near_copies(members, sets),
        *_capped(
            [f"Another zero position? {text}." for text in zero_offsets(members, joints).values()], "zero positions"
        ),
        *_capped([*_shared_tasks(members, sets)], "tasks"),
    )


def _capped(notes: Sequence[str], kind: str) -> Iterator[str]:
    """Yield the first MAX_NOTES notes, and the number of the others in one more."""
    yield from notes[:MAX_NOTES]
    if (more := len(notes) - MAX_NOTES) > 0:
        yield f"And {more} more notes on {kind}."


def _near_copies(members: Sequence[Member], sets: Sequence[EvaluationSet]) -> Iterator[str]:
    """Yield where a training episode is nearly one that another client trains on or holds out, or of a set."""
    training = [_training_sketches(member) for member in members]
    evaluating = [_held_out_sketches(member) for member in members]
    found = {
        "training data": find_near_copies(training),
        "held-out data": find_near_copies(training, evaluating, same_places=False),
        "evaluation sets": find_near_copies(training, [_set_sketches(one) for one in sets]),
    }
    for copies in chain.from_iterable(each.listed.values() for each in found.values()):
        yield f"Near copies: {copies}; what is trained on twice weighs more, and what is evaluated is not unseen."
    for place, each in found.items():
        if more := each.number - len(each.listed):
            yield f"Near copies: and {more} more pairs of datasets, of training data and {place}."


def _training_sketches(member: Member) -> SketchedDataset:
    return f"the training data of {member.client}", dict(zip(member.split.train, member.path_sketches, strict=False))


def _held_out_sketches(member: Member) -> SketchedDataset:
    sketches = member.path_sketches[len(member.split.train) :]
    return f"the held-out data of {member.client}", dict(zip(member.split.held_out, sketches, strict=False))


def _set_sketches(one: EvaluationSet) -> SketchedDataset:
    return _name(one), dict(zip(one.split.held_out, one.path_sketches, strict=False))


def _shared_tasks(members: Sequence[Member], sets: Sequence[EvaluationSet]) -> Iterator[str]:
    """Yield the task texts that several clients have, and those of evaluation sets that a client trains on."""
    having_task: dict[str, list[str]] = {}
    for member in members:
        for text in dict.fromkeys(member.report.tasks):
            having_task.setdefault(text, []).append(member.client)
    for text, having in having_task.items():
        if len(having) > 1:
            yield f"The task {text!r} is that of {join_names(having, LISTED)}."
        for one in sets:
            if text in one.report.tasks:
                yield (
                    f"The task {text!r} of {having[0]} is also that of {_name(one)}, which is unseen by episode and "
                    "not by task."
                )


def _name(one: EvaluationSet) -> str:
    return f"the evaluation set {public_name(one.dataset)}"
