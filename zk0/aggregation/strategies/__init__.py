"""The catalog of aggregation strategies: one class in one module, named as in its paper.

To add a strategy, add a module here with a subclass of `zk0.aggregation.strategy.Strategy`, its test under
tests/aggregation/strategies, and its line in docs/aggregation.md. Nothing else lists strategies.
"""

from importlib import import_module
from pkgutil import iter_modules

from zk0.aggregation.strategy import Strategy
from zk0.errors import SettingsError
from zk0.settings.aggregation_settings import AggregationSettings


def _discover() -> dict[str, type[Strategy]]:
    """Return the strategy classes that the modules of this package define, by name."""
    found: dict[str, type[Strategy]] = {}
    for module in (import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Strategy) and value.__module__ == module.__name__:
                found[value.name] = value
    return found


STRATEGIES = _discover()
"""Every strategy by the value of `aggregation.strategy` that selects it, in ascending order of module names."""


def build_strategy(settings: AggregationSettings) -> Strategy:
    """Return the strategy that the settings name.

    Raises:
        SettingsError: no strategy has that name.
    """
    if settings.strategy not in STRATEGIES:
        raise SettingsError(
            f"aggregation.strategy: expected one of {', '.join(STRATEGIES)}, found {settings.strategy!r}"
        )
    return STRATEGIES[settings.strategy](settings)
