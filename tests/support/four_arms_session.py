"""A session of three rounds and four clients: one update is rejected, one evaluation is missing."""

from zk0.records import (
    Checkpoint,
    ClientEvaluation,
    ClientMetrics,
    ClientScore,
    Contribution,
    DatasetReport,
    EpisodeScore,
    Evaluation,
    Member,
    Moments,
    Refusal,
    RoundDecision,
    RoundRecord,
    SetScore,
    Split,
    Statistics,
    Update,
)

CLIENTS = ("cloth", "lift", "place", "stack")
DATASETS = ("hf:lab/so101-cloth", "lab/so101-lift", "local:/home/someone/place", "sim:stack")
FRAMES = (2400, 3000, 1800, 2800)
CLIENT_LOSS = {1: (0.81, 0.77, 0.92, 0.74), 2: (0.62, 0.55, 0.71, 0.52), 3: (0.50, 0.44, None, 0.41)}
SERVER_LOSS = {0: (1.214, 0.030), 1: (0.902, 0.026), 3: (0.655, 0.021)}
JOINTS = 6
VIDEO = b"content of a video file"


def _episodes(loss: float, se: float, degrees: float) -> tuple[EpisodeScore, ...]:
    """Five episodes of equal weight around `loss` with this standard error; their order is the same in every round."""
    return tuple(
        EpisodeScore(
            episode=index,
            frames=128,
            actions=1000,
            policy_loss=loss + se * 2**0.5 * (index - 2),
            action_error_degrees=degrees + 0.1 * (index - 2),
        )
        for index in range(5)
    )


def _set(name: str, loss: float, se: float, degrees: float) -> SetScore:
    joints = tuple(degrees * f for f in (0.7, 1.3, 1.2, 1.0, 0.8, 1.0))
    return SetScore(
        dataset=name,
        episodes=_episodes(loss, se, degrees),
        frames=640,
        policy_loss=loss,
        policy_loss_se=se,
        action_error_degrees=degrees,
        joint_error_degrees=joints,
        horizon_error_degrees=(degrees * 0.6, degrees, degrees * 1.4),
    )


def _evaluation(number: int) -> Evaluation | None:
    if number not in SERVER_LOSS:
        return None
    loss, se = SERVER_LOSS[number]
    set_errors = se * 1.2, se * 1.5
    degrees = {0: 21.4, 1: 14.2, 3: 9.15}[number]
    return Evaluation(
        round=number,
        policy_loss=loss,
        policy_loss_se=(set_errors[0] ** 2 + set_errors[1] ** 2) ** 0.5 / 2,
        action_error_degrees=degrees,
        sets=(
            _set("lab/so101-unseen", loss - 0.1, set_errors[0], degrees - 2.0),
            _set("sim:place-held-out", loss + 0.1, set_errors[1], degrees + 2.0),
        ),
        normalization="pooled",
        seed=42,
        times=8,
        seconds=31.5,
    )


def _client_evaluation(number: int) -> ClientEvaluation | None:
    """Every client evaluates in rounds 0 and 3; in round 3, one client does not respond."""
    if number not in (0, 3):
        return None
    losses = {"cloth": 2.0, "lift": 1.6, "place": 1.2, "stack": 0.8}
    scores = [
        ClientScore(client=name, score=_set(DATASETS[at], loss if number == 0 else loss / 2, 0.02, 10.0))
        for at, (name, loss) in enumerate(losses.items())
        if (number, name) != (3, "place")
    ]
    refusals = () if number == 0 else (Refusal(client="place", reason="no answer within 60 s"),)
    return ClientEvaluation(
        round=number, scores=tuple(scores), refusals=refusals, normalization="pooled", seed=42, times=8, seconds=4.0
    )


def _update(number: int, index: int, loss: float) -> Update:
    return Update(
        client=CLIENTS[index],
        round=number,
        global_digest="a" * 64,
        path=f"round-{number:03d}/updates/{CLIENTS[index]}.safetensors",
        digest=f"{number}{index}" * 32,
        bytes=399_523_968,
        examples=FRAMES[index],
        dataset=DATASETS[index],
        metrics=ClientMetrics(
            policy_loss=loss,
            fedprox_loss=0.002 * (index + 1),
            grad_norm=1.5 - 0.2 * number,
            update_norm=0.8 / number + 0.05 * index,
            local_steps=40,
            lr_first=1e-4,
            lr_last=2e-6,
            seconds=71.0,
        ),
    )


def round_record(number: int) -> RoundRecord:
    losses = CLIENT_LOSS.get(number, ())
    updates = tuple(_update(number, i, loss) for i, loss in enumerate(losses) if loss is not None)
    total = sum(u.examples for u in updates)
    return RoundRecord(
        round=number,
        decision=RoundDecision(
            round=number,
            lr=(1e-4, 8e-5, 5e-5)[number - 1],
            mu=0.01 if number < 3 else 0.0105,
            lr_factor=1.0 if number < 3 else 0.95,
            client_lr_factors={"place": 1.15} if number == 2 else {},
            reason="cosine" if number < 3 else "stalled: x 0.95; spread of client losses above 1.2",
        )
        if number
        else None,
        checkpoint=Checkpoint(
            round=number,
            path=f"round-{number:03d}/weights.safetensors",
            digest=f"{number}c" * 32,
            bytes=399_523_968,
        ),
        updates=updates,
        refusals=(Refusal(client="place", reason="NaN in model.action_out_proj.weight"),) if number == 3 else (),
        contributions=tuple(
            Contribution(
                client=u.client,
                weight=u.examples / total,
                update_norm=u.metrics.update_norm,
                cosine_to_mean=0.9 - 0.1 * i if (number, i) != (1, 3) else None,
            )
            for i, u in enumerate(updates)
        ),
        param_update_norm=0.7 / number if number else None,
        evaluation=_evaluation(number),
        client_evaluation=_client_evaluation(number),
        seconds=120.0 if number else 35.0,
        finished_at=f"2025-11-22T03:0{number}:00+00:00",
    )


def _moments(count: int, offset: float) -> Moments:
    ramp = tuple(offset + 3.0 * j for j in range(JOINTS))
    return Moments(
        count=count,
        mean=ramp,
        std=tuple(10.0 + j for j in range(JOINTS)),
        min=tuple(v - 40.0 for v in ramp),
        max=tuple(v + 40.0 for v in ramp),
    )


def member(index: int) -> Member:
    statistics = Statistics(state=_moments(FRAMES[index], float(index)), action=_moments(FRAMES[index], index + 0.5))
    return Member(
        client=CLIENTS[index],
        dataset=DATASETS[index],
        report=DatasetReport(
            dataset=DATASETS[index],
            root="/home/someone/cache",
            robot_type="so101_follower",
            fps=30.0,
            episodes=12,
            frames=FRAMES[index] * 12 // 10,
            cameras=("overhead", "wrist"),
            tasks=(f"{CLIENTS[index]} the red cube",),
        ),
        split=Split(train=tuple(range(10)), held_out=(10, 11)),
        train_frames=FRAMES[index],
        statistics=statistics,
        train_digests=tuple(f"{index}{e:02d}".ljust(64, "0") for e in range(11)),
        held_out_digests=(f"{index}11".ljust(64, "0"),),
    )
