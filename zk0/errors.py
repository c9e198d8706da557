"""Every error that zk0 raises on purpose.

Zk0Error
├── SettingsError       a setting does not exist, has an invalid value, or contradicts another one
├── DatasetError        a dataset is missing, broken, or does not fit the federation
├── PolicyError         a policy cannot be built, or differs from the expected one
├── SimulatorError      the simulator cannot render, or a scripted expert fails its task
│   └── RendererUnavailable OpenGL failed in a way that may pass, as on a busy GPU; also a TransientError
├── RobotError          a robot cannot be reached, or does not fit the policy
├── CheckpointError     weights on disk differ from the recorded ones
├── UpdateError         one client's update is rejected; the round may continue without it
├── DiskFull            a file does not fit on its disk
├── LedgerError         the ledger or a journal of a session was changed or contradicts itself
├── EvaluationError     an evaluation failed; there is no number then
├── FederationError     a federation engine cannot be opened, or does not respond
│   └── MessageLost         the upload of a message was aborted before it was complete
├── ReportError         a chart, a video or a page cannot be written
│   └── EncoderEnded        the video encoder ended before the video was complete
├── PublishError        a model or its metrics cannot be published
├── BenchmarkError      a benchmark cannot be run, or a result got worse
├── PrefectServerError  the Prefect server or its worker does not start, does not respond, or has ended
└── TransientError      the same call may succeed later; Prefect retries it, and disks that may come back
    ├── RoundIncomplete     a round has too few good updates; those that arrived are reused
    ├── ServerUnavailable   a server of the federation is unreachable or overloaded
    ├── RunEnded            the Flower run that a call belongs to has ended
    ├── HubUnavailable      the Hugging Face Hub is unreachable or overloaded
    └── TrackerUnavailable  the server that tracks a session is unreachable or overloaded
"""

import errno
from collections.abc import Sequence


class Zk0Error(Exception):
    """Base of all errors that zk0 raises on purpose. The text is one line that says what to do."""


class SettingsError(Zk0Error):
    """A setting does not exist, has an invalid value, or contradicts another one."""


class DatasetError(Zk0Error):
    """A dataset is missing, broken, or does not fit the federation."""


class PolicyError(Zk0Error):
    """A policy cannot be built, or differs from the expected one."""


class SimulatorError(Zk0Error):
    """The simulator cannot render, or a scripted expert fails its task."""


class RobotError(Zk0Error):
    """A robot cannot be reached, or does not fit the policy."""


class CheckpointError(Zk0Error):
    """Weights on disk differ from the recorded ones."""


class UpdateError(Zk0Error):
    """One client's update is rejected; the round may continue without it."""


class DiskFull(Zk0Error):
    """A file does not fit on its disk. Finished files stay, so the session can be resumed."""


class LedgerError(Zk0Error):
    """The ledger or a journal of a session was changed or contradicts itself."""


class EvaluationError(Zk0Error):
    """An evaluation failed; there is no number then."""


class FederationError(Zk0Error):
    """A federation engine cannot be opened, or does not respond."""


class MessageLost(FederationError):
    """The upload of a message was aborted before it was complete; the sender may be asked again."""


class ReportError(Zk0Error):
    """A chart, a video or a page cannot be written."""


class EncoderEnded(ReportError):
    """The video encoder ended before the video was complete; it is started again."""


class PublishError(Zk0Error):
    """A model or its metrics cannot be published."""


class BenchmarkError(Zk0Error):
    """A benchmark cannot be run, or a result got worse since the last good night."""


class PrefectServerError(Zk0Error):
    """The Prefect server or its worker does not start, does not respond, or has ended."""


class TransientError(Zk0Error):
    """The same call may succeed later; Prefect retries what may pass (`may_pass`) and nothing else."""


class RendererUnavailable(SimulatorError, TransientError):
    """OpenGL failed in a way that may pass: the GPU is busy, or no frame came in time."""


class RoundIncomplete(TransientError):
    """A round has too few good updates; the next attempt reuses those that arrived."""


class ServerUnavailable(TransientError):
    """A server of the federation is unreachable or overloaded."""


class RunEnded(TransientError):
    """The Flower run that a call belongs to has ended; a new run may continue."""


class HubUnavailable(TransientError):
    """The Hugging Face Hub is unreachable or overloaded."""


class TrackerUnavailable(TransientError):
    """The server that tracks a session is unreachable or overloaded."""


_PASSING_ERRNOS = frozenset(
    (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EHOSTDOWN, errno.EHOSTUNREACH)
)
"""What a file system over the network reports while its server is away; a full or read-only disk is not among them."""


def may_pass(error: BaseException) -> bool:
    """Return whether the call that raised the error may succeed later.

    It is a TransientError, or the disk failed for a reason that may pass, also where an error of ours reports it.

    >>> [may_pass(e) for e in (HubUnavailable("503"), OSError(errno.ESTALE, "stale"), OSError(errno.ENOSPC, "full"))]
    [True, True, False]
    """
    if isinstance(error, TransientError):
        return True
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _PASSING_ERRNOS:
            return True
        cause = cause.__cause__
    return False


def first_line(error: BaseException, max_length: int | None = None) -> str:
    """First line with text of an error's message; the name of its type if the message is empty.

    >>> first_line(ValueError("  no header\\nat byte 3")), first_line(TimeoutError())
    ('no header', 'TimeoutError')
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:max_length]


def list_problems(title: str, problems: Sequence[str]) -> str:
    """One problem on the title's line; several on a line each.

    >>> list_problems("1 of 2 clients", ["a: no data"]), list_problems("2 of 2 clients", ["a: x", "b: y"])
    ('1 of 2 clients: a: no data', '2 of 2 clients:\\n  a: x\\n  b: y')
    """
    return f"{title}: {problems[0]}" if len(problems) == 1 else "\n  ".join([f"{title}:", *problems])
