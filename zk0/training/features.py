"""What the frozen vision encoder says of every frame, computed once and kept on the client's disk.

One file an episode, memory-mapped when read, shared by epochs, rounds, sessions and the evaluation. A file
is named by everything its content depends on; it is as private as the video it was made from and never
leaves the machine.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.robot.dataset import Episode, EpisodeReader
from zk0.robot.policy import frozen_digest
from zk0.robot.prefix import check_prefix_is_frozen, embed_frames

_FRAMES_AT_ONCE = 32


class FeatureCache:
    """Connector outputs (T, cameras, tokens, width) of episodes, by content.

    `frozen` is the digest of the policy's frozen weights where it is known already.
    """

    def __init__(self, folder: Path, policy: Any, cameras: Sequence[str], frozen: str | None = None) -> None:
        check_prefix_is_frozen(policy)
        self.folder = folder
        self.policy = policy
        self.cameras = tuple(cameras)
        self.dtype = next(policy.model.vlm_with_expert.vlm.parameters()).dtype
        self._frozen = frozen or frozen_digest(policy)
        self._files: dict[Path, str] = {}

    def episodes(
        self, reader: EpisodeReader, episodes: Sequence[Episode], on_built: Callable[[int], None] | None = None
    ) -> list[NDArray[Any]]:
        """Features of each episode, in order, memory-mapped; those not kept yet are computed first.

        `on_built` is told the number of frames after each episode that had to be computed.

        Raises:
            DatasetError: a frame cannot be decoded.
        """
        found = []
        for episode in episodes:
            path = self.folder / f"{self._key(reader, episode)}.npy"
            kept = self._open(path, len(episode.timestamps))
            if kept is None:
                _write(path, self._compute(reader, episode))
                kept = self._open(path, len(episode.timestamps))
                if kept is None:
                    raise AssertionError(f"{path} was just written and cannot be read")
                if on_built:
                    on_built(len(episode.timestamps))
            found.append(kept)
        return found

    def tensor(self, stored: NDArray[Any]) -> torch.Tensor:
        """Stored features as a tensor of the dtype they were computed in (bf16 is kept as 16-bit integers)."""
        values = torch.from_numpy(stored)
        return values.view(torch.bfloat16) if self.dtype == torch.bfloat16 else values

    def _key(self, reader: EpisodeReader, episode: Episode) -> str:
        videos = {}
        for camera in self.cameras:
            path, *span = reader.source(episode, camera)
            if path not in self._files:
                with path.open("rb") as file:
                    self._files[path] = hashlib.file_digest(file, "sha256").hexdigest()
            videos[camera] = [self._files[path], *span]
        parts = {
            "frozen": self._frozen,
            "videos": videos,
            "times": hashlib.sha256(episode.timestamps.tobytes()).hexdigest(),
            "resize": self.policy.config.resize_imgs_with_padding,
            "dtype": str(self.dtype),
            "device": str(self.policy.config.device),
            "versions": [version(package) for package in ("torch", "lerobot", "transformers")],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=False).encode()).hexdigest()

    def _open(self, path: Path, frames: int) -> NDArray[Any] | None:
        """The file memory-mapped, or None where it is missing, cut short, or not ours: it is computed again then."""
        try:
            stored: NDArray[Any] = np.load(
                path, mmap_mode="r"
            )  # "r+" would fill up a file that was cut short with zeros
        except (OSError, ValueError, EOFError):
            return None
        expected = np.int16 if self.dtype == torch.bfloat16 else torch.empty(0, dtype=self.dtype).numpy().dtype
        fits = stored.ndim == 4 and stored.shape[:2] == (frames, len(self.cameras)) and stored.dtype == expected
        return stored if fits else None

    def _compute(self, reader: EpisodeReader, episode: Episode) -> NDArray[Any]:
        device = self.policy.config.device
        decoded = {f"observation.images.{c}": torch.from_numpy(reader.frames(episode, c)) for c in self.cameras}
        parts = []
        for start in range(0, len(episode.timestamps), _FRAMES_AT_ONCE):
            chunk = {k: v[start : start + _FRAMES_AT_ONCE].to(device).float() / 255 for k, v in decoded.items()}
            parts.append(embed_frames(self.policy, chunk).cpu())
        features = torch.cat(parts)
        return (features.view(torch.int16) if features.dtype == torch.bfloat16 else features).numpy()


def _write(path: Path, features: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, half = tempfile.mkstemp(prefix=".features-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, features)
        Path(half).replace(path)
    finally:
        Path(half).unlink(missing_ok=True)
