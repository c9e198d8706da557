"""Multi-Krum: the mean of the updates that are closest to the others."""

from zk0.aggregation.strategies.krum import Krum


class MultiKrum(Krum):
    """The mean of the `selected` updates with the lowest Krum scores (arXiv 1703.02757), weighted by training frames.

    Without `selected` it averages all updates but `malicious` + 2.
    """

    name = "multi_krum"

    def min_updates(self) -> int:
        """Return Krum's number, or `selected` where that is more."""
        return max(super().min_updates(), self.settings.selected or 0)

    def selected_updates(self, updates: int) -> int:
        """Return how many of the updates are averaged."""
        return self.settings.selected or max(1, updates - self.settings.malicious - 2)
