"""Which statistics normalize states and actions: the start policy's, or those pooled over the clients."""

from zk0.data.statistics import SMALLEST_STD
from zk0.errors import PolicyError
from zk0.policy.carried_statistics import carried_statistics
from zk0.records import Moments, NormalizationKind, PolicyRecipe, Record, Statistics
from zk0.settings.dataset_settings import ContractSettings
from zk0.settings.session import Session

MAX_MEAN_SHIFT = 3.0
"""Largest distance of a joint's pooled mean from the policy's, in the policy's standard deviations."""
MAX_STD_RATIO = 8.0
"""Largest factor between a joint's pooled and the policy's standard deviation."""
SMALLEST_CARRIED_SHARE = 0.01
"""Smallest standard deviation of a policy's joint, as a share of the smallest one of pooled statistics."""


class ChosenStatistics(Record):
    """The statistics of a session, which ones they are, and why."""

    kind: NormalizationKind
    reason: str
    statistics: Statistics


def choose_statistics(
    session: Session, recipe: PolicyRecipe, pooled: Statistics, earlier: NormalizationKind | None
) -> ChosenStatistics:
    """Return the statistics by which the session normalizes.

    With `normalization = "auto"` they are the policy's if it carries some and they fit the clients' data (the same
    joints and units, so the policy was trained on such an arm), else the pooled ones.

    Args:
        session: the settings.
        recipe: the start policy.
        pooled: statistics of all training frames of the clients.
        earlier: what this session chose before it was interrupted; None for a new one.

    Raises:
        PolicyError: `normalization = "policy"`, and the policy carries none for these joints, or one of its joints has
            hardly moved while it was trained.
    """
    wanted = earlier if session.normalization == "auto" and earlier else session.normalization
    if wanted == "auto" and session.contract.other_groups:
        reason = "the clients may be of several groups of joints and units"
        return ChosenStatistics(kind="pooled", reason=reason, statistics=pooled)
    if wanted in ("pooled", "client"):
        kind: NormalizationKind = "client" if wanted == "client" else "pooled"
        return ChosenStatistics(kind=kind, reason=f"normalization is {kind}", statistics=pooled)
    carried = carried_statistics(recipe.path, recipe.revision)
    if carried is None:
        objection: str | None = f"{recipe.path} carries none for state and action"
    else:
        objection = joints_objection(carried, pooled)
    if carried is not None and not objection:
        objection = still_joint_objection(carried, session.contract)
    if objection and wanted == "policy":
        raise PolicyError(f'{objection}; set normalization = "pooled"')
    if carried is not None and not objection and wanted == "auto":
        objection = scale_objection(carried, pooled)
    if carried is None or objection:
        return ChosenStatistics(kind="pooled", reason=str(objection), statistics=pooled)
    return ChosenStatistics(kind="policy", reason=f"{recipe.path} was trained with them", statistics=carried)


def joints_objection(carried: Statistics, pooled: Statistics) -> str | None:
    """Return why the policy's statistics are of another number of joints; None if they are not."""
    for what, one, other in (("state", carried.state, pooled.state), ("action", carried.action, pooled.action)):
        if len(one.mean) != len(other.mean):
            return f"the policy's statistics of the {what} have {len(one.mean)} joints, the clients' {len(other.mean)}"
    return None


def still_joint_objection(carried: Statistics, contract: ContractSettings) -> str | None:
    """Return which joint has hardly moved while the policy was trained; None if all have.

    Dividing by its standard deviation would turn an offset of a tenth of a degree into a number of any size.

    >>> still = Moments(count=1, mean=(40.0, 9.0), std=(20.0, 1e-6), min=(0.0, 9.0), max=(90.0, 9.0))
    >>> still_joint_objection(Statistics(state=still, action=still), ContractSettings(joints=("pan.pos", "grip.pos")))
    "grip.pos has a std of 1e-06 in the policy's statistics of the state, expected at least 0.01 degrees"
    """
    smallest = SMALLEST_CARRIED_SHARE * SMALLEST_STD[contract.units]
    for what, moments in (("state", carried.state), ("action", carried.action)):
        for joint, std in zip(contract.joints, moments.std, strict=False):
            if std < smallest:
                return (
                    f"{joint} has a std of {std:.3g} in the policy's statistics of the {what}, expected at least "
                    f"{smallest:g} {contract.units}"
                )
    return None


def scale_objection(carried: Statistics, pooled: Statistics) -> str | None:
    """Return why the policy's statistics are of other units or another calibration; None if they fit the clients'.

    >>> degrees = Moments(count=1, mean=(40.0,), std=(20.0,), min=(0.0,), max=(90.0,))
    >>> radians = Moments(count=1, mean=(0.7,), std=(0.35,), min=(0.0,), max=(1.57,))
    >>> arm, other = Statistics(state=degrees, action=degrees), Statistics(state=radians, action=radians)
    >>> scale_objection(arm, arm) is None, scale_objection(arm, other)
    (True, "joint 0 of the state has mean 0.7 and std 0.35 at the clients, 40 and 20 in the policy's statistics")
    """
    for what, one, other in (("state", carried.state, pooled.state), ("action", carried.action, pooled.action)):
        for joint in range(len(one.mean)):
            if not _fits(one, other, joint):
                return (
                    f"joint {joint} of the {what} has mean {other.mean[joint]:.4g} and std {other.std[joint]:.4g} at "
                    f"the clients, {one.mean[joint]:.4g} and {one.std[joint]:.4g} in the policy's statistics"
                )
    return None


def _fits(carried: Moments, pooled: Moments, joint: int) -> bool:
    shift = abs(pooled.mean[joint] - carried.mean[joint]) / carried.std[joint]
    ratio = pooled.std[joint] / carried.std[joint]
    return shift <= MAX_MEAN_SHIFT and 1 / MAX_STD_RATIO <= ratio <= MAX_STD_RATIO
