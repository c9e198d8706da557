"""The few numbers that sum a session up."""

from collections.abc import Sequence

from zk0.records import Member, PrivacySpent, RoundRecord
from zk0.report.key_figures import key_figures
from zk0.session import Session


def test_privacy_is_told_where_there_is_noise_and_only_there(
    session: Session, members: Sequence[Member], history: Sequence[RoundRecord]
) -> None:
    title = "Privacy of a client"
    assert title not in [figure.title for figure in key_figures(session, members, history, [])]
    spent = PrivacySpent(
        rounds=3, clients=4, clip_norm=0.5, noise_multiplier=1.25, noise_std=0.15625, epsilon=7.125, delta=1e-5
    )
    private = [*history[:-1], history[-1].model_copy(update={"privacy": spent})]
    (figure,) = [f for f in key_figures(session, members, private, []) if f.title == title]
    assert figure.text == "7.12 epsilon"
    assert "delta 1e-05, 3 rounds of noise 1.25 × clip 0.5 over 4 clients" in figure.note
