"""How reports name a policy, its loss and its trained weights, by LeRobot's type of the policy."""

from zk0.records import Record


class PolicyText(Record):
    """Words for one type of policy."""

    title: str
    loss: str
    """What its loss in an evaluation is, as the end of "The policy loss is ..."."""
    trained: str
    """The weights that are trained and sent."""


_ALL = "all parameters"
_KNOWN = {
    "smolvla": PolicyText(
        title="SmolVLA",
        loss="the mean squared velocity error of flow matching",
        trained="action expert and projections",
    ),
    "act": PolicyText(title="ACT", loss="the mean absolute error of the normalized actions", trained=_ALL),
    "diffusion": PolicyText(
        title="Diffusion Policy", loss="the mean squared error of the predicted noise", trained=_ALL
    ),
}


def policy_text(policy_type: str) -> PolicyText:
    """The words for a type of policy.

    >>> policy_text("act").title, policy_text("another").title
    ('ACT', 'another')
    """
    other = PolicyText(title=policy_type, loss="the policy's own loss in evaluation mode", trained=_ALL)
    return _KNOWN.get(policy_type, other)
