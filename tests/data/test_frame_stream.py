"""Frames are decoded in pieces of bounded memory, one piece ahead, and are those that LeRobot decodes."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from zk0.data.episode_reader import EpisodeReader
from zk0.data.frame_stream import FRAMES_AT_ONCE, compute_ahead, decode_frames
from zk0.errors import DatasetError


@pytest.fixture(scope="module")
def long_set(record: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes in one video, the second one of several pieces."""
    return record(tmp_path_factory.mktemp("long") / "set", 9, (7, 3 * FRAMES_AT_ONCE + 5), ("wrist",))


@pytest.mark.parametrize("every", [1, 2, 7])
def test_frames_are_those_of_lerobots_decoder(long_set: Path, every: int) -> None:
    from lerobot.datasets.video_utils import decode_video_frames

    reader = EpisodeReader(long_set)
    for episode in reader.read([0, 1]):
        file, start, _ = reader.frame_location(episode, "wrist")
        seconds = (episode.timestamps + start).tolist()
        expected = decode_video_frames(file, seconds, 1e-4, "pyav", return_uint8=True).numpy()[::every]
        pieces = list(reader.frame_pieces(episode, "wrist", every))
        assert all(len(piece) == FRAMES_AT_ONCE for piece in pieces[:-1])
        assert np.array_equal(np.concatenate(pieces), expected)


def test_memory_does_not_grow_with_the_episode(long_set: Path) -> None:
    reader = EpisodeReader(long_set)
    (episode,) = reader.read([1])
    one_piece = FRAMES_AT_ONCE * 3 * 64 * 64
    tracemalloc.start()
    frames = sum(len(piece) for piece in compute_ahead(reader.frame_pieces(episode, "wrist")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames == 3 * FRAMES_AT_ONCE + 5
    assert peak < 3.5 * one_piece  # one in use, one that is ready, and the frames of the next one


def test_images_are_decoded_as_they_are_read(long_set: Path) -> None:
    reader = EpisodeReader(long_set)
    (episode,) = reader.read([1])
    expected = reader.frames(episode, "wrist").transpose(0, 2, 3, 1)
    images = reader.images(episode, "wrist")
    assert len(images) == len(expected)
    order = [0, 0, 1, FRAMES_AT_ONCE, 3 * FRAMES_AT_ONCE + 4, 5]  # the last one is decoded anew
    assert all(np.array_equal(images[index], expected[index]) for index in order)
    assert np.array_equal(images[30:40], expected[30:40])
    with pytest.raises(IndexError, match="frame 101 of 101"):
        images[101]
    with pytest.raises(DatasetError, match="no camera"):
        reader.images(episode, "top")[0]


def test_one_item_is_computed_ahead() -> None:
    computed = []

    def items() -> Iterator[int]:
        for number in range(5):
            computed.append(number)
            yield number

    for item in compute_ahead(items()):
        assert len(computed) <= item + 2
    assert computed == list(range(5))


def test_an_error_while_decoding_ahead_reaches_the_caller(long_set: Path, tmp_path: Path) -> None:
    reader = EpisodeReader(long_set)
    (episode,) = reader.read([1])
    file, _, end = reader.frame_location(episode, "wrist")
    with pytest.raises(ValueError, match=r"the frame nearest to .* s is at"):
        list(decode_frames(file, [end - 0.1, end + 5], 1e-4))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((ValueError, OSError)):
        list(decode_frames(cut, [0.0, end - 0.1], 1e-4))
    whole = file.read_bytes()
    with av.open(str(file), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=44_100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44_100
        container.mux([*sound.encode(silence), *sound.encode()])
    with pytest.raises(DatasetError, match=r"file-000.mp4: episode 1, frames 0 to 100 cannot be decoded"):
        list(compute_ahead(reader.frame_pieces(episode, "wrist")))
    file.write_bytes(whole)
    file.rename(file.with_suffix(".away"))
    with pytest.raises(DatasetError, match=r"file-000.mp4: episode 1, frames 0 to 100 cannot be decoded"):
        list(compute_ahead(reader.frame_pieces(episode, "wrist")))
