"""What a session needs of this machine, read from settings and metadata once for each process."""

from functools import lru_cache

from zk0.policy.policy_shapes import read_policy_shapes
from zk0.resources.dataset_sizes import dataset_sizes
from zk0.resources.disk_text import disk_lines
from zk0.resources.disk_use import DiskUse, disk_use
from zk0.resources.host_capacity import host_capacity
from zk0.settings.session import Session


def resource_lines(session: Session) -> list[str]:
    """Return what a session needs of this machine, as lines to print or log before anything is downloaded.

    Raises:
        DatasetError: the metadata of a dataset cannot be read.
        PolicyError: the sizes of the policy cannot be read.
    """
    return disk_lines(_disk_use(session.model_dump_json()), host_capacity(session))


@lru_cache(maxsize=1)
def _disk_use(session_json: str) -> DiskUse:
    session = Session.model_validate_json(session_json)
    return disk_use(session, dataset_sizes(session), read_policy_shapes(session.policy))
