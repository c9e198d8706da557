"""Notes on the datasets of a session beside each other."""

from four_arms_session import member

from zk0.evaluation.dataset_notes import dataset_notes
from zk0.evaluation.session_setup import EvaluationSet, SessionSetup
from zk0.records import Member, PolicyRecipe, Split

SKETCHES = {"path": "0123456789abcdef" * 8, "another": "fedcba9876543210" * 8}


def client(index: int, task: str, *paths: str, held_out: int = 0) -> Member:
    """A client whose episodes take these paths; the last ones are held out."""
    base, train = member(index), tuple(range(len(paths) - held_out))
    return base.model_copy(
        update={
            "report": base.report.model_copy(update={"tasks": (task,)}),
            "split": Split(train=train, held_out=tuple(range(len(train), len(paths)))),
            "path_sketches": tuple(SKETCHES[path] for path in paths),
        }
    )


def evaluation_set(task: str, *paths: str) -> EvaluationSet:
    report = member(0).report.model_copy(update={"tasks": (task,)})
    return EvaluationSet(
        dataset="local:/private/judge",
        root="/private/judge",
        rename_map={},
        report=report,
        split=Split(train=(), held_out=tuple(range(5, 5 + len(paths)))),
        digests=("0" * 64,) * len(paths),
        path_sketches=tuple(SKETCHES[path] for path in paths),
    )


def notes(members: list[Member], *sets: EvaluationSet) -> str:
    return "\n".join(dataset_notes(members, sets, ("a", "b", "c", "d", "e", "f")))


def test_a_near_copy_among_what_two_clients_train_on() -> None:
    one, other = client(0, "Lift.", "path"), client(1, "Push.", "another", "path")
    found = notes([one, other])
    expected = f"episode 0 of the training data of {one.client} is nearly a copy of episode 1 of the training data of "
    assert expected + other.client in found


def test_a_near_copy_of_a_held_out_episode_of_another_client() -> None:
    one, other = client(0, "Lift.", "path"), client(1, "Push.", "another", "path", held_out=1)
    assert f"nearly a copy of episode 1 of the held-out data of {other.client}" in notes([one, other])
    assert "Near copies" not in notes([one]), "its own held-out episodes are its own check's"


def test_a_near_copy_of_an_evaluation_episode_is_told_without_folders() -> None:
    found = notes([client(0, "Lift.", "path")], evaluation_set("Push.", "another", "path"))
    assert "nearly a copy of episode 6 of the evaluation set local:judge" in found
    assert "private" not in found


def test_the_same_task_at_clients_and_in_an_evaluation_set() -> None:
    members = [client(index, "Lift." if index < 3 else "Push.", "path") for index in range(4)]
    found = notes(members, evaluation_set("Push."))
    assert f"The task 'Lift.' is that of {', '.join(m.client for m in members[:3])}." in found
    assert f"The task 'Push.' of {members[3].client} is also that of the evaluation set local:judge" in found


def test_many_clients_are_counted() -> None:
    members = [client(0, "Lift.").model_copy(update={"client": f"c{n}"}) for n in range(9)]
    assert "The task 'Lift.' is that of c0, c1, c2, c3, c4 and 4 more." in notes(members)


def test_many_notes_are_counted() -> None:
    """30 clients with one path and two tasks each: 435 pairs of datasets, 30 tasks that an evaluation set has."""
    base = client(0, "", "path", "another", held_out=1)
    report = base.report.model_copy(update={"tasks": tuple(f"Task {n}." for n in range(30))})
    members = [base.model_copy(update={"client": f"c{n}", "report": report}) for n in range(30)]
    found = notes(members).splitlines()
    assert len(found) == 20 + 1 + 20 + 1
    assert "Near copies: and 415 more pairs of datasets, of training data and training data." in found
    assert found[-1] == "And 10 more notes on tasks."


def test_nothing_to_note() -> None:
    assert notes([client(0, "Lift.", "path"), client(1, "Push.", "another")], evaluation_set("Stack.")) == ""


def test_unseen_by_task_or_by_episode() -> None:
    recipe = PolicyRecipe(path="tiny", cameras=("a",), joints=6, seed=1)
    setup = SessionSetup(recipe=recipe, members=(client(0, "Lift."),), sets=(), statistics=member(0).statistics)
    assert setup.unseen_by(evaluation_set("Lift.")) == "episode"
    assert setup.unseen_by(evaluation_set("Stack.")) == "task"
