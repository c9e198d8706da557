"""Hyperparameter search with Optuna, stored in a folder, so that it can be resumed after a crash.

The sampler is TPE (Bergstra et al., NeurIPS 2011). A trial is pruned if it is worse than the median of earlier trials
at the same round. Several processes may search in one folder: each locks the trials that it runs, and all share the
results.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0.errors import SettingsError
from zk0.tuning.trials import Dimension, SearchSpace, SettingValue, TrialOutcome, TrialResult

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 4
"""Number of trials that must finish before a trial can be pruned."""
_SPACE, _REASON, _SECONDS = "space", "reason", "seconds"


class Trial:
    """A running trial: one set of values for the settings."""

    def __init__(self, trial: "optuna.Trial", settings: dict[str, SettingValue]) -> None:
        self._trial = trial
        self.settings = settings
        self.number: int = trial.number

    def report(self, round_number: int, loss: float) -> bool:
        """Report the loss of a round, and return whether the trial should be pruned. A repeated report is ignored."""
        known = self._trial.study.get_trials(deepcopy=False)[self.number].intermediate_values
        if round_number not in known:
            self._trial.report(loss, round_number)
        return bool(self._trial.should_prune())


class Search:
    """All trials of a search. A trial that it starts is locked until the search is closed or its process ends."""

    def __init__(self, study: "optuna.Study", space: SearchSpace, folder: Path, seed: int, locks: ExitStack) -> None:
        self._study, self._space, self._folder, self._seed, self._locks = study, space, folder, seed, locks

    def finished_trials(self) -> tuple[TrialResult, ...]:
        """Results of all trials that have ended."""
        return tuple(_trial_result(t) for t in self._study.trials if t.state.is_finished())

    def next_trial(self, trials: int) -> Trial | None:
        """Resume an interrupted trial, or start a new one.

        Returns None if `trials` trials exist and each has ended or runs in another process.
        """
        import optuna

        running = optuna.trial.TrialState.RUNNING
        with _locked(self._folder / "search.lock"):
            known = self._study.get_trials(deepcopy=False)
            interrupted = (one for one in known if one.state == running and self._lock(one.number))
            if (found := next(interrupted, None)) is not None:
                trial = optuna.Trial(self._study, found._trial_id)
            elif len(known) < trials:
                # Optuna does not store the state of a sampler; the number of trials in its seed makes it reproducible.
                sampler = optuna.samplers.TPESampler(seed=(self._seed + len(known)) % 2**32, constant_liar=True)
                self._study.sampler = sampler
                trial = self._study.ask()
                self._lock(trial.number)
            else:
                return None
            settings = {name: _suggested(trial, name, dimension) for name, dimension in self._space.items()}
        return Trial(trial, settings)

    def _lock(self, number: int) -> bool:
        """Lock a trial for this process, and return whether that succeeded: False if another process runs it."""
        lock = self._locks.enter_context((self._folder / f"trial-{number:03d}.lock").open("a"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        return True

    def finish(self, trial: Trial, outcome: TrialOutcome, seconds: float, reason: str = "") -> None:
        """Record how a trial ended; its loss is the last reported one."""
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
def open_search(folder: Path, space: SearchSpace, seed: int) -> Iterator[Search]:
    """Open the search in a folder, or create it.

    Raises:
        SettingsError: the folder holds a search over another space.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "search.lock"):
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'search.db'}")
    try:
        study = optuna.create_study(
            study_name="search",
            storage=storage,
            load_if_exists=True,
            direction="minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1),
        )
        requested = json.dumps({name: d.model_dump(mode="json") for name, d in space.items()}, sort_keys=True)
        if (known := study.user_attrs.get(_SPACE, requested)) != requested:
            raise SettingsError(f"{folder}: holds a search over {known}, expected {requested}; choose another folder")
        study.set_user_attr(_SPACE, requested)
        with ExitStack() as locks:
            yield Search(study, space, folder, seed, locks)
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that only one process can hold; it is released when the process ends."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _suggested(trial: "optuna.Trial", name: str, dimension: Dimension) -> SettingValue:
    if dimension.choices:
        return _checked_value(trial.suggest_categorical(name, dimension.choices))
    low, high = dimension.low, dimension.high
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=dimension.log)
    return trial.suggest_float(name, low, high, log=dimension.log)


def _checked_value(value: Any) -> SettingValue:
    assert isinstance(value, bool | int | float | str)
    return value


def _trial_result(trial: "optuna.trial.FrozenTrial") -> TrialResult:
    import optuna

    outcomes: dict[Any, TrialOutcome] = {
        optuna.trial.TrialState.COMPLETE: "finished",
        optuna.trial.TrialState.PRUNED: "pruned",
        optuna.trial.TrialState.FAIL: "failed",
    }
    losses = trial.intermediate_values
    return TrialResult(
        number=trial.number,
        settings=trial.params,
        outcome=outcomes[trial.state],
        loss=losses[max(losses)] if losses else None,
        rounds=max(losses, default=0),
        seconds=float(trial.user_attrs.get(_SECONDS, 0.0)),
        reason=str(trial.user_attrs.get(_REASON, "")),
    )
