"""Content digests of episodes.

Two episodes are the same if their states and actions are the same. The digests show that no episode is both trained on
and evaluated on, and find episodes that a dataset holds twice.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zk0.data.frame_table import EpisodeFrames, read_episodes, stored_episodes


def episode_digest(episode: EpisodeFrames) -> str:
    """Return the SHA-256 over shapes and float32 little-endian bytes of states, then actions, in frame order."""
    sha = hashlib.sha256()
    for values in (episode.state, episode.action):
        sha.update(repr(values.shape).encode())
        sha.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
    return sha.hexdigest()


def episode_digests(root: Path, episodes: Sequence[int], rename: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the digest of each of these episodes, in their order.

    Names, videos, task texts, episode numbers and file layout do not enter the digest, so a renamed or re-encoded
    copy of an episode has the digest of the original.

    Args:
        root: the dataset's folder.
        episodes: episode indices.
        rename: feature key in the dataset -> key in the contract.

    Raises:
        DatasetError: an episode is missing or incomplete.
    """
    found = read_episodes(root, episodes, rename)
    return tuple(episode_digest(found[e]) for e in episodes)


def dataset_digests(root: Path, rename: Mapping[str, str] | None = None) -> dict[int, str]:
    """Return episode index -> digest of every episode that has frames.

    Raises:
        DatasetError: there is no frame, or an episode is incomplete.
    """
    episodes = stored_episodes(root)
    return dict(zip(episodes, episode_digests(root, episodes, rename), strict=True))
