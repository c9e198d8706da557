"""What an episode is, whatever it is called and however it is stored."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zk0.robot.frames import EpisodeFrames, read_episodes, stored_episodes


def episode_digest(episode: EpisodeFrames) -> str:
    """SHA-256 over shapes and float32 little-endian bytes of states, then actions, in frame order."""
    sha = hashlib.sha256()
    for values in (episode.state, episode.action):
        sha.update(repr(values.shape).encode())
        sha.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
    return sha.hexdigest()


def episode_digests(root: Path, episodes: Sequence[int], rename: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """One digest per episode, in the order asked for.

    Names, videos, task texts, episode numbers and file layout do not enter, so that a renamed or re-encoded
    copy of an episode has the digest of the original.

    Raises:
        DatasetError: an episode is missing or its frames are not whole.
    """
    found = read_episodes(root, episodes, rename)
    return tuple(episode_digest(found[e]) for e in episodes)


def dataset_digests(root: Path, rename: Mapping[str, str] | None = None) -> dict[int, str]:
    """The digest of every episode that has frames, by its number.

    Raises:
        DatasetError: an episode's frames are not whole.
    """
    episodes = stored_episodes(root)
    return dict(zip(episodes, episode_digests(root, episodes, rename), strict=True))
