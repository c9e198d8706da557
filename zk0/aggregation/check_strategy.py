"""The settings that an aggregation strategy depends on, checked before a session starts.

`zk0.settings` cannot check them: which strategies there are, and what each one needs, is written in their classes.
"""

from collections.abc import Iterator

from zk0.aggregation.strategies import STRATEGIES, build_strategy
from zk0.aggregation.strategy import Strategy
from zk0.errors import SettingsError
from zk0.settings.session import Session


def check_strategy(session: Session, where: str) -> None:
    """Check that the strategy of a session exists and that the other settings meet its needs.

    Raises:
        SettingsError: names `where` (the session file) and everything that does not fit.
    """
    try:
        strategy = build_strategy(session.aggregation)
    except SettingsError as e:
        raise SettingsError(f"{where}: {e}") from e
    if mismatches := list(_mismatches(strategy, session)):
        raise SettingsError(f"{where}: " + "; ".join(mismatches))


def _mismatches(strategy: Strategy, session: Session) -> Iterator[str]:
    min_updates, needed = session.federation.min_updates, strategy.min_updates()
    if min_updates < needed:
        yield (
            f"aggregation.strategy {strategy.name} needs {needed} updates in every round with these settings, "
            f"federation.min_updates is {min_updates}"
        )
    needing_a_mean = {
        "aggregation.noise_multiplier": session.aggregation.noise_multiplier > 0,
        "federation.mode buffered": session.federation.mode == "buffered",
        "federation.secure": session.federation.secure,
    }
    for name in (name for name, is_set in needing_a_mean.items() if is_set and not strategy.is_mean_of_all):
        means = ", ".join(name for name, other in STRATEGIES.items() if other.is_mean_of_all)
        yield f"{name} needs a strategy that is a mean of all updates ({means}), found strategy {strategy.name}"
    is_dense = session.training.scope != "lora" and session.federation.wire == session.federation.wire_down == "fp32"
    if strategy.uses_control_variates and not is_dense:
        yield (
            f"aggregation.strategy {strategy.name} needs dense float32 weights in both directions: expected "
            'federation.wire "fp32", federation.wire_down "fp32" and no training.scope "lora"'
        )
