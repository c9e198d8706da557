"""What a session needs of this machine, read from settings and metadata once for each process."""

from functools import lru_cache

from zk0.policy.policy_shapes import PolicyShapes, read_policy_sizes
from zk0.resources.dataset_sizes import dataset_sizes
from zk0.resources.disk_text import disk_line
from zk0.resources.estimate_text import shortage_lines
from zk0.resources.host_capacity import HostCapacity, host_capacity
from zk0.resources.run_time import Speed, reference_speed
from zk0.resources.speed_cache import read_speed
from zk0.resources.suggestions import SessionNeeds, find_shortages
from zk0.settings.session import Session


def resource_lines(session: Session) -> list[str]:
    """Return what a session needs of this machine, as lines to print or log before anything is downloaded.

    The first one is the disk space; a warning follows for everything of which there is too little.

    Raises:
        DatasetError: the metadata of a dataset cannot be read.
        PolicyError: the sizes of the policy cannot be read.
    """
    needs = session_needs(session)
    return [disk_line(needs.estimate().disk), *shortage_lines(find_shortages(needs))]


def session_needs(session: Session) -> SessionNeeds:
    """Return what estimates of a session are computed from; within one process metadata is read once.

    The speed is the one that was measured on this machine for such a policy. Without a measurement, it is that of a
    usual CPU; of a GPU it is then not known.

    Raises:
        DatasetError: the metadata of a dataset cannot be read.
        PolicyError: the sizes of the policy cannot be read.
    """
    return _needs(session.model_dump_json())


@lru_cache(maxsize=1)
def _needs(session_json: str) -> SessionNeeds:
    session = Session.model_validate_json(session_json)
    policy, host = read_policy_sizes(session.policy, session.training.trained_patterns()), host_capacity(session)
    speed = _known_speed(session, policy, host) if isinstance(policy, PolicyShapes) else None
    return SessionNeeds(session=session, sizes=dataset_sizes(session), policy=policy, machine=host, speed=speed)


def _known_speed(session: Session, shapes: PolicyShapes, host: HostCapacity) -> Speed | None:
    return read_speed(session, shapes, host) or (None if host.has_gpu else reference_speed(shapes))
