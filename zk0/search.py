"""The search itself, by Optuna, in a folder that survives a crash: TPE proposes, bad trials are pruned by early rounds.

TPE: Bergstra et al., NeurIPS 2011; pruned is what is worse than the median of earlier trials at the same round.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0.errors import SettingsError
from zk0.trials import Dimension, Outcome, Space, TrialRow, Value

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 4
"""So many trials run to their end before any is pruned."""
_SPACE, _REASON, _SECONDS = "space", "reason", "seconds"


class Trial:
    """One set of values that is being tried."""

    def __init__(self, trial: "optuna.Trial", settings: dict[str, Value]) -> None:
        self._trial = trial
        self.settings = settings
        self.number: int = trial.number

    def report(self, round_number: int, loss: float) -> bool:
        """Tell the loss of a round; whether the trial is not worth going on with."""
        known = self._trial.study.get_trials(deepcopy=False)[self.number].intermediate_values
        if round_number not in known:
            self._trial.report(loss, round_number)
        return bool(self._trial.should_prune())


class Search:
    """The trials so far, and the next one."""

    def __init__(self, study: "optuna.Study", space: Space) -> None:
        self._study = study
        self._space = space

    def rows(self) -> tuple[TrialRow, ...]:
        """Every trial that has ended."""
        return tuple(_row(t) for t in self._study.trials if t.state.is_finished())

    def next(self) -> Trial:
        """A trial that was interrupted, or a new one."""
        import optuna

        running = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        trial = optuna.Trial(self._study, running[0]._trial_id) if running else self._study.ask()
        settings = {name: _suggested(trial, name, dimension) for name, dimension in self._space.items()}
        return Trial(trial, settings)

    def end(self, trial: Trial, outcome: Outcome, seconds: float, reason: str = "") -> None:
        """Write down how a trial ended; its loss is the last one that was reported."""
        import optuna

        states = optuna.trial.TrialState
        inner = trial._trial
        inner.set_user_attr(_REASON, reason)
        inner.set_user_attr(_SECONDS, seconds)
        losses = self._study.trials[trial.number].intermediate_values
        if outcome == "finished":
            self._study.tell(inner, losses[max(losses)])
        else:
            self._study.tell(inner, state=states.PRUNED if outcome == "pruned" else states.FAIL)


@contextmanager
def open_search(folder: Path, space: Space, seed: int) -> Iterator[Search]:
    """The search that lives in a folder; it is begun where there is none yet.

    Raises:
        SettingsError: the search in the folder looks for something else.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'search.db'}")
    try:
        study = optuna.create_study(
            study_name="search",
            storage=storage,
            load_if_exists=True,
            direction="minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1),
        )
        asked = json.dumps({name: d.model_dump(mode="json") for name, d in space.items()}, sort_keys=True)
        if (known := study.user_attrs.get(_SPACE, asked)) != asked:
            raise SettingsError(f"{folder}: this search looks for {known}, expected {asked}; choose another folder")
        study.set_user_attr(_SPACE, asked)
        # a sampler's state is not stored: what it has seen decides, with the number of trials in the seed
        study.sampler = optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**32)
        yield Search(study, space)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _suggested(trial: "optuna.Trial", name: str, dimension: Dimension) -> Value:
    if dimension.choices:
        return _value(trial.suggest_categorical(name, dimension.choices))
    low, high = dimension.low, dimension.high
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=dimension.log)
    return trial.suggest_float(name, low, high, log=dimension.log)


def _value(found: Any) -> Value:
    assert isinstance(found, bool | int | float | str)
    return found


def _row(trial: "optuna.trial.FrozenTrial") -> TrialRow:
    import optuna

    outcomes: dict[Any, Outcome] = {
        optuna.trial.TrialState.COMPLETE: "finished",
        optuna.trial.TrialState.PRUNED: "pruned",
        optuna.trial.TrialState.FAIL: "failed",
    }
    losses = trial.intermediate_values
    return TrialRow(
        number=trial.number,
        settings=trial.params,
        outcome=outcomes[trial.state],
        loss=losses[max(losses)] if losses else None,
        rounds=max(losses, default=0),
        seconds=float(trial.user_attrs.get(_SECONDS, 0.0)),
        reason=str(trial.user_attrs.get(_REASON, "")),
    )
