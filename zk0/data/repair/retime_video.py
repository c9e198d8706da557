"""Copy a video with regular frame times, without encoding its frames again."""

from fractions import Fraction
from pathlib import Path

import av
from av.error import FFmpegError

from zk0.data.dataset_folder import BrokenFile, DatasetFolder
from zk0.errors import first_line

TICKS_PER_FRAME = 1000


def retime_video(folder: DatasetFolder, file: str, target: Path, fps: float) -> None:
    """Write a copy of a video in which frame k, in the order of presentation, is shown at k / fps seconds.

    Raises:
        BrokenFile: the video cannot be read or written.
    """
    base = 1 / (Fraction(fps).limit_denominator(1001) * TICKS_PER_FRAME)
    try:
        with av.open(str(folder.file_path(file))) as source, av.open(str(target), "w", format="mp4") as copy:
            stream = source.streams.video[0]
            packets = [p for p in source.demux(stream) if p.pts is not None]
            rank = {pts: k for k, pts in enumerate(sorted(p.pts for p in packets))}
            delay = max(n - rank[p.pts] for n, p in enumerate(packets))
            new = copy.add_stream_from_template(stream)
            for number, packet in enumerate(packets):
                packet.pts, packet.dts = rank[packet.pts] * TICKS_PER_FRAME, (number - delay) * TICKS_PER_FRAME
                packet.time_base, packet.duration = base, TICKS_PER_FRAME
                packet.stream = new
                copy.mux(packet)
    except (FFmpegError, OSError, ValueError, MemoryError) as e:
        raise BrokenFile(file, f"a video that cannot be copied ({first_line(e, 120)})", "mp4") from e
