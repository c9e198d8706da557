"""The flow of a hyperparameter search: sessions with sampled settings, bad ones stopped after early rounds.

Results of earlier trials decide which settings the next one tries. One flow run runs one session at a time; several
flow runs with the same folder, on as many workers, search together.
"""

from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.utilities.annotations import quote

from flows.session_loading import load_session_to_run
from tasks.tuning import SearchRequest, opened_search, run_trial, write_search_results
from zk0.errors import EvaluationError, SettingsError
from zk0.tuning.trials import Dimension, Objective, best_trial, default_space


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
    """Search for the settings with the smallest loss and write them as a session file.

    Args:
        config: the session file whose settings every trial changes.
        overrides: settings by dotted name that replace those of the file in every trial, such as {"rounds": 5}.
        space: what is searched: a range (`low`, `high`, `log`) or `choices` by dotted name of a setting; unset: lr,
            FedProx mu, local steps (or epochs) and scheduler, around the session's own values.
        trials: number of trials in the folder when the search ends; run again with more to continue.
        objective: the loss to minimize. held_out: the clients' mean loss on their held-out episodes. unseen: the loss
            on the evaluation sets, which can then no longer evaluate the chosen settings.
        folder: the folder of the search; an interrupted search continues there, and runs that share it work together.
        keep_weights: keep every trial's weights and policies, not only its numbers.

    Returns the path of best.toml.

    Raises:
        SettingsError: the folder holds a search with other settings, or no client evaluates.
        EvaluationError: no trial finished.
    """
    session = load_session_to_run(Path(config), overrides)
    if objective == "held_out" and not session.evaluates_on_clients_after(session.rounds):
        raise SettingsError(
            f"{config}: clients hold out no episode or never evaluate; expected data.holdout_episodes and "
            'evaluation.clients_frequency of 1 or more, or the objective "unseen"'
        )
    request = SearchRequest(
        folder=str(Path(folder).resolve()),
        session=session,
        space=space or default_space(session),
        objective=objective,
        keep_weights=keep_weights,
    )
    with opened_search(request) as search:
        while (trial := search.next_trial(trials)) is not None:
            quoted = (cast(Any, quote(argument)) for argument in (search, trial))  # Prefect must not look into them
            results = run_trial(trial.number, request, *quoted)
            write_search_results(len(results), request, results)
        results = search.finished_trials()
    best = best_trial(results)
    if best is None:
        raise EvaluationError(f"{request.folder}: no trial of {len(results)} finished; see the reasons in results.json")
    return str(Path(request.folder) / "best.toml")
