"""A client's own policy: the global weights with its own values of the personal parameters (`training.personal`).

The values stay in the client's scratch folder: beside its updates while the session runs, and in a saved policy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0.client.round_state import RoundState, session_state_folder
from zk0.policy.save_policy import save_policy
from zk0.policy.trainable import install_personal, personal_weights
from zk0.records import Statistics
from zk0.settings.plans import ClientPlan
from zk0.weights.digests import load_weights
from zk0.weights.writer import save_weights

_CARD = """# A policy of {client}

The global policy of session {session} after round {round}, with this client's own values of {count} tensors, which were
trained on its data only and never sent ({patterns}). States and actions are normalized with the statistics that the
client trained with.
"""


@dataclass(frozen=True)
class PersonalPolicy:
    """The personal weights of one client in one session.

    Args:
        scratch: the client's scratch folder.
        plan: of a round or of an evaluation.
    """

    scratch: Path
    plan: ClientPlan

    def begin_round(self, policy: Any) -> None:
        """Install the weights after the client's last round before the plan's; else they stay the start policy's."""
        if self.plan.recipe.personal and (file := self._state.previous):
            install_personal(policy, load_weights(file))

    def store(self, policy: Any) -> None:
        """Keep the policy's personal weights after the plan's round."""
        if self.plan.recipe.personal:
            save_weights(self._state.current, personal_weights(policy))
            self._state.remove_older()

    def install(self, policy: Any) -> bool:
        """Install the client's weights after the plan's round; False if it has trained none."""
        if not self.plan.recipe.personal or (file := self._state.latest) is None:
            return False
        install_personal(policy, load_weights(file))
        return True

    @property
    def folder(self) -> Path:
        """Where the policy is saved; named by a digest, because the session's name comes from the server."""
        return self.scratch / "personal" / session_state_folder(self.scratch, self.plan.terms.session).name

    def save(self, policy: Any, statistics: Statistics) -> None:
        """Save the policy as a LeRobot folder on the client, in place of the one of an earlier round."""
        card = _CARD.format(
            client=self.plan.client,
            session=self.plan.terms.session,
            round=self.plan.round,
            count=len(personal_weights(policy)),
            patterns=", ".join(f"`{pattern}`" for pattern in self.plan.recipe.personal),
        )
        save_policy(policy, statistics, self.folder, {"README.md": card})

    @property
    def _state(self) -> RoundState:
        return RoundState(self.scratch, self.plan, "personal")
