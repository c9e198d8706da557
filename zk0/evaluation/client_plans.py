"""What the server sends one client: the plan of a round, of an evaluation, of a joining report, of its videos."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from zk0.aggregation.strategies import build_strategy
from zk0.evaluation.secure_plan import secure_rules
from zk0.evaluation.session_setup import SessionSetup
from zk0.records import Checkpoint, RoundDecision, RoundRecord
from zk0.rules.round_decision import client_lr
from zk0.settings.plans import (
    ClientPlan,
    EvaluationPlan,
    FeaturePlan,
    JoiningReportPlan,
    RoundPlan,
    VideoPlan,
    session_terms,
)
from zk0.settings.session import Session


def client_round_plan(
    client: str, session: Session, name: str, setup: SessionSetup, before: Checkpoint, decision: RoundDecision
) -> RoundPlan:
    """Return the plan by which one client trains in a round.

    Args:
        client: its name.
        session: the settings.
        name: the session's name, which is that of its folder.
        setup: recipe and statistics.
        before: the global weights from which the client starts.
        decision: learning rate and proximal term of the round.
    """
    return RoundPlan(
        **_common_fields(client, session, name, setup, before) | {"round": decision.round},
        lr=client_lr(decision, client),
        mu=decision.mu,
        scheduler=session.scheduler,
        use_control_variates=build_strategy(session.aggregation).uses_control_variates,
        secure=secure_rules(session, setup.members, decision),
        buffered=session.federation.mode == "buffered",
    )


def evaluating_clients(session: Session, setup: SessionSetup) -> list[str]:
    """Return the clients that evaluate the global model on their held-out episodes.

    Of clients that share one dataset, and so its held-out episodes, the first one evaluates for all, unless each
    normalizes with statistics of its own or has a policy of its own.
    """
    names = [member.client for member in setup.members]
    if session.training.personal:
        return names
    return names[:1] if session.partition is not None and setup.normalization != "client" else names


def client_evaluation_plan(
    client: str, session: Session, name: str, setup: SessionSetup, checkpoint: Checkpoint
) -> EvaluationPlan:
    """Return the plan by which one client evaluates a checkpoint on its held-out episodes.

    A client saves its own policy where the global one is saved, and in each round of a session that may end early.
    """
    number = checkpoint.round
    saves = bool(session.training.personal) and (session.saves_policy_after(number) or session.patience > 0)
    return EvaluationPlan(
        **_common_fields(client, session, name, setup, checkpoint),
        times=session.evaluation.times,
        batch_size=session.evaluation.batch_size,
        every_frames=session.evaluation.every_frames,
        save_personal=saves and number > 0,
    )


def feature_plan(client: str, session: Session, name: str, setup: SessionSetup, checkpoint: Checkpoint) -> FeaturePlan:
    """Return the plan by which one client computes the features of its frames, before its first round."""
    return FeaturePlan(
        **_common_fields(client, session, name, setup, checkpoint),
        every_frames=session.evaluation.every_frames if session.evaluates_on_clients() else None,
    )


def _common_fields(
    client: str, session: Session, name: str, setup: SessionSetup, checkpoint: Checkpoint
) -> dict[str, Any]:
    """The fields that all plans have, for a model."""
    return dict(
        ClientPlan(
            terms=session_terms(session, name),
            round=checkpoint.round,
            client=client,
            recipe=setup.recipe,
            global_digest=checkpoint.digest,
            statistics=setup.client_statistics(client) if setup.normalization != "client" else None,
            training=session.training.local_settings(),
        )
    )


def joining_report_plans(
    session: Session, name: str, setup: SessionSetup, history: Sequence[RoundRecord]
) -> tuple[list[JoiningReportPlan], list[JoiningReportPlan]]:
    """Return each client's plan with the first weights, which it trains alone, and its plan with the last weights."""
    first, last = (
        [
            _joining_report_plan(member.client, session, name, setup, history, record.checkpoint)
            for member in setup.members
        ]
        for record in (history[0], history[-1])
    )
    return first, last


def episode_video_plan(session: Session, round_number: int, now: datetime) -> VideoPlan | None:
    """Return how evaluation episodes of a round are rendered as videos; None in a round that renders none.

    Args:
        session: the settings.
        round_number: the round of the checkpoint.
        now: goes into the names of the files.
    """
    settings = session.video
    if not (settings.episodes and session.renders_videos_after(round_number)):
        return None
    return VideoPlan(episodes=settings.episodes, camera_height=settings.camera_height, timestamp=now)


def _joining_report_plan(
    client: str, session: Session, name: str, setup: SessionSetup, history: Sequence[RoundRecord], weights: Checkpoint
) -> JoiningReportPlan:
    plan = client_evaluation_plan(client, session, name, setup, weights)
    lrs = tuple(client_lr(record.decision, client) for record in history if record.decision is not None)
    return JoiningReportPlan(**dict(plan), lrs=lrs, scheduler=session.scheduler)
