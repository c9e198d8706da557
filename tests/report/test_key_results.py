"""Key results of a session."""

from collections.abc import Sequence

from zk0.records import Member, PrivacySpent, RoundRecord
from zk0.report.key_results import key_results
from zk0.settings.session import Session


def test_privacy_is_shown_for_sessions_with_noise_only(
    session: Session, members: Sequence[Member], history: Sequence[RoundRecord]
) -> None:
    title = "Client-level privacy"
    assert title not in [result.title for result in key_results(session, members, history, [])]
    spent = PrivacySpent(
        rounds=3, clients=4, clip_norm=0.5, noise_multiplier=1.25, noise_std=0.15625, epsilon=7.125, delta=1e-5
    )
    private = [*history[:-1], history[-1].model_copy(update={"privacy": spent})]
    (result,) = [f for f in key_results(session, members, private, []) if f.title == title]
    assert result.text == "7.12 epsilon"
    assert "delta 1e-05, 3 rounds with noise of standard deviation 0.156 (1.25 × clip 0.5 / 4 clients)" in result.note
