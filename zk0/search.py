"""The search itself, by Optuna, in a folder that survives a crash: TPE proposes, bad trials are pruned by early rounds.

Several processes may search in one folder: each takes trials that nobody else works on, and learns from all.

TPE: Bergstra et al., NeurIPS 2011; pruned is what is worse than the median of earlier trials at the same round.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    """The trials so far, and the next one. What it hands out is its own until it ends, or its process does."""

    def __init__(self, study: "optuna.Study", space: Space, folder: Path, seed: int, held: ExitStack) -> None:
        self._study, self._space, self._folder, self._seed, self._held = study, space, folder, seed, held

    def rows(self) -> tuple[TrialRow, ...]:
        """Every trial that has ended."""
        return tuple(_row(t) for t in self._study.trials if t.state.is_finished())

    def next(self, trials: int) -> Trial | None:
        """A trial that was interrupted, or a new one; None if there are so many already, or others work on the last."""
        import optuna

        running = optuna.trial.TrialState.RUNNING
        with _locked(self._folder / "search.lock"):
            known = self._study.get_trials(deepcopy=False)
            free = (one for one in known if one.state == running and self._take(one.number))
            if (found := next(free, None)) is not None:
                trial = optuna.Trial(self._study, found._trial_id)
            elif len(known) < trials:
                # a sampler's state is not stored: what it has seen decides, with the number of trials in the seed
                sampler = optuna.samplers.TPESampler(seed=(self._seed + len(known)) % 2**32, constant_liar=True)
                self._study.sampler = sampler
                trial = self._study.ask()
                self._take(trial.number)
            else:
                return None
            settings = {name: _suggested(trial, name, dimension) for name, dimension in self._space.items()}
        return Trial(trial, settings)

    def _take(self, number: int) -> bool:
        """Whether nobody else works on this trial; then it is ours until this process ends."""
        lock = self._held.enter_context((self._folder / f"trial-{number:03d}.lock").open("a"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        return True

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
        asked = json.dumps({name: d.model_dump(mode="json") for name, d in space.items()}, sort_keys=True)
        if (known := study.user_attrs.get(_SPACE, asked)) != asked:
            raise SettingsError(f"{folder}: this search looks for {known}, expected {asked}; choose another folder")
        study.set_user_attr(_SPACE, asked)
        with ExitStack() as held:
            yield Search(study, space, folder, seed, held)
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


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
