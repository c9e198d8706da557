"""Opens the frames of a dataset for training or evaluation, with cached features or decoded in every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0.data.episode_reader import EpisodeReader
from zk0.policy.processors import make_processors
from zk0.records import PolicyRecipe, Statistics
from zk0.settings.training_settings import LocalTrainingSettings
from zk0.training.cached_examples import CachedExamples
from zk0.training.cached_policy import open_feature_cache
from zk0.training.decoded_examples import DecodedExamples
from zk0.training.feature_cache import FrameProgressCallback


@dataclass(frozen=True)
class ExampleSource:
    """Everything that the frames of a dataset depend on, besides the dataset itself.

    Args:
        policy: whose frozen layers compute missing features.
        recipe: of the policy.
        statistics: that states and actions are normalized with.
        training: its `features` decides whether features are cached.
        cache: folder of the feature cache.
    """

    policy: Any
    recipe: PolicyRecipe
    statistics: Statistics
    training: LocalTrainingSettings
    cache: Path

    def open(
        self,
        reader: EpisodeReader,
        episodes: Sequence[int],
        on_frames: FrameProgressCallback | None = None,
        every: int = 1,
    ) -> CachedExamples | DecodedExamples:
        """The frames of some episodes.

        Args:
            reader: of the dataset.
            episodes: their indices.
            on_frames: called while missing features are computed.
            every: N: only frames 0, N, 2N, ... of each episode are used.
        """
        pre, _ = make_processors(self.policy, self.statistics)
        if self.training.features == "off":
            return DecodedExamples(reader.root, episodes, self.policy, pre, reader.rename_map)
        cache = open_feature_cache(self.cache, self.policy, self.recipe, self.training)
        return CachedExamples(reader, episodes, self.policy, pre, cache, on_frames, every)
