"""Whether pictures still belong to their rows: frame t of the healthy dataset shows a bright band at pixel row 4t."""

from pathlib import Path

import numpy as np

from zk0.data.dataset_folder import list_folder
from zk0.data.dataset_info import read_dataset_info
from zk0.data.episode_table import read_episode_table
from zk0.data.frame_table import stored_episodes
from zk0.data.video_file import read_frame_at


def misplaced_pictures(root: Path) -> dict[tuple[int, str], list[int]]:
    """Return (episode, camera) -> the frame that each row shows, for every clip that does not show 0, 1, 2, ..."""
    folder = list_folder(root)
    info = read_dataset_info(folder)
    found = {}
    for episode in read_episode_table(folder, info):
        for key, clip in episode.clips.items():
            times = clip.start_seconds + np.arange(episode.length) / info.fps
            shown = [_band(read_frame_at(folder, clip.file, float(t))) for t in times]
            if shown != list(range(episode.length)):
                found[episode.index, key] = shown
    assert len(stored_episodes(root)) == info.total_episodes
    return found


def _band(picture: np.ndarray) -> int:
    rows = picture[:, 10:40].astype(float).mean(axis=(1, 2))
    return int(np.argmax([rows[4 * t : 4 * t + 16].mean() for t in range(12)]))
