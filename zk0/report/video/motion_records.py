"""Records of video_analysis.json."""

from zk0.records import Record

FLOW_HEIGHT = 120
"""Height in pixels to which camera images are scaled before the optical flow is computed."""


class VideoMotion(Record):
    """Result and motion of one video."""

    video: str
    """Path relative to the analyzed folder."""
    kind: str
    """closed-loop or open-loop."""
    subject: str
    """The task in closed loop, the dataset in open loop."""
    client: str | None
    round: int | None
    number: int
    """The seed in closed loop, the episode in open loop."""
    success: bool | None
    duration_seconds: float
    frames: int
    policy_loss: float | None
    flow_pixels_per_frame: float | None
    """Mean length of the optical flow in the camera images; None for a single frame."""
    flow_smoothness: float | None
    """Spectral arc length of the flow over time (`zk0.stats.smoothness`): nearer to 0 is smoother."""


class RoundMotion(Record):
    """Summary of the videos of one round."""

    round: int | None
    videos: int
    attempts: int
    """Number of closed-loop videos."""
    successes: int
    success_interval: tuple[float, float] | None
    """95 % Wilson interval of the success rate; None without an attempt."""
    mean_duration_seconds: float
    mean_flow_smoothness: float | None


class MotionAnalysis(Record):
    """Content of video_analysis.json."""

    method: str = (
        "dense optical flow (Farneback 2003) between successive frames of the camera images at "
        f"{FLOW_HEIGHT} pixels of height; smoothness is the spectral arc length of its mean length over time"
    )
    rounds: tuple[RoundMotion, ...]
    videos: tuple[VideoMotion, ...]
    side_by_side: tuple[str, ...]
    """Videos of the same attempt or episode in several rounds side by side, relative to the analyzed folder."""
