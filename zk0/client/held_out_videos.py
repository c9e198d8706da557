"""Videos of a client's held-out episodes under the global model."""

from collections.abc import Callable
from pathlib import Path

from zk0.client.client import Client
from zk0.evaluation.episode_videos import VideoRenderer
from zk0.records import EpisodeVideo, SetScore
from zk0.settings.plans import EvaluationPlan


def render_held_out_videos(
    client: Client,
    plan: EvaluationPlan,
    weights: Path,
    score: SetScore,
    stop_late: Callable[[], None] | None = None,
) -> tuple[EpisodeVideo, ...]:
    """Render the first held-out episodes as the plan asks; the videos stay on the client's machine.

    Args:
        client: whose episodes are rendered.
        plan: of the evaluation; nothing is rendered if its `video` is None.
        weights: the file with the global weights.
        score: of this evaluation; its losses are written into the results.
        stop_late: called while a video is rendered; an error that it raises ends the video, whose result names it.

    Raises:
        CheckpointError: the weights are not those that the plan names.
    """
    if plan.video is None:
        return ()
    policy = client.load_global_model(plan, weights)
    statistics, seed_and_times = client.normalization_statistics(plan), (plan.terms.seed, plan.times)
    examples, joints, every = client.held_out_examples(plan, policy), plan.terms.contract.joints, plan.every_frames
    renderer = VideoRenderer(
        policy, examples, client.reader, statistics, plan.video, seed_and_times, joints, every, stop_late=stop_late
    )
    base = client.video_folder or client.scratch
    folder = base / "evaluate" / f"round_{plan.round}" / client.name
    return renderer.render(score, (plan.round, plan.global_digest), client.name, base, folder)
