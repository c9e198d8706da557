"""A search over settings: sessions, each told by those before it, bad ones stopped early.

One run plays one session at a time. Several runs with the same folder, on as many workers, search together.
"""

from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.utilities.annotations import quote

from tasks import tuning
from zk0.errors import EvaluationError, SettingsError
from zk0.session import load_session
from zk0.trials import Dimension, Objective, best_of, usual_space


@flow(name="zk0-tune", flow_run_name="{folder}", persist_result=False)
def hyperparameter_search(
    config: str = "deployments/sessions/demo.toml",
    overrides: dict[str, Any] | None = None,
    space: dict[str, Dimension] | None = None,
    trials: int = 20,
    objective: Objective = "held_out",
    folder: str = "outputs/search",
    keep_weights: bool = False,
) -> str:
    """The settings with the smallest loss, as a session file.

    Args:
        config: the session file that every trial starts from.
        overrides: settings by dotted name that replace those of the file in every trial, such as {"rounds": 5}.
        space: what is searched: a range (`low`, `high`, `log`) or `choices` by dotted name of a setting; unset: lr,
            FedProx mu, local steps (or epochs) and scheduler, around what the session asks for.
        trials: how many there are to be in the folder; run again with more to go on.
        objective: what is made small. held_out: the clients' mean loss on their own held-out episodes. unseen: the loss
            on the sets that judge, which then can no longer judge what was chosen.
        folder: where the search lives; one that was interrupted goes on there, and runs that share it work together.
        keep_weights: keep every trial's weights and policies, not only its numbers.

    Returns the path of best.toml.

    Raises:
        SettingsError: the search in the folder looks for something else, or no client judges.
        EvaluationError: no trial finished.
    """
    session = load_session(Path(config), overrides).at(Path.cwd())
    if objective == "held_out" and not session.clients_judge_after(session.rounds):
        raise SettingsError(
            f"{config}: clients hold nothing out or never judge; expected data.holdout_episodes and "
            'evaluation.clients_frequency of 1 or more, or the objective "unseen"'
        )
    asked = tuning.Asked(
        folder=str(Path(folder).resolve()),
        session=session,
        space=space or usual_space(session),
        objective=objective,
        keep_weights=keep_weights,
    )
    with tuning.searching(asked) as search:
        while (trial := search.next(trials)) is not None:
            unseen = (cast(Any, quote(thing)) for thing in (search, trial))  # not for Prefect to look into
            rows = tuning.run_trial(trial.number, asked, *unseen)
            tuning.show(len(rows), asked, rows)
        rows = search.rows()
    best = best_of(rows)
    if best is None:
        raise EvaluationError(f"{asked.folder}: no trial of {len(rows)} finished; the reasons are in results.json")
    return str(Path(asked.folder) / "best.toml")
