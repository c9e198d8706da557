"""What a session has written down, read again for its report."""

import json

from pydantic import TypeAdapter

from zk0.errors import ReportError
from zk0.folder import SessionFolder
from zk0.records import Member

_MEMBERS = TypeAdapter(tuple[Member, ...])


def kept_members(here: SessionFolder) -> tuple[Member, ...]:
    """The clients as they joined.

    Raises:
        ReportError: they cannot be read.
    """
    try:
        return _MEMBERS.validate_python(json.loads(here.ground.read_text(encoding="utf-8"))["members"])
    except (OSError, ValueError, KeyError) as e:
        raise ReportError(f"{here.ground}: no clients can be read from it ({e}); expected them") from e
