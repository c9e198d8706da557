"""Everything zk0 raises on purpose.

Zk0Error
├── SettingsError     a session asks for something that does not exist or cannot be
├── DatasetError      a data set is missing, broken, or does not fit the federation
├── PolicyError       a policy cannot be built, or is not the one that was asked for
├── SimulatorError    the simulator cannot render, or an expert cannot do its task
├── CheckpointError   weights on disk are not the weights that were recorded
├── UpdateError       one client's update is refused (the round may go on without it)
├── DiskFull          a file does not fit on its disk; what is finished is kept
├── LedgerError       the record of a session contradicts itself
├── EvaluationError   a measurement could not be made (there is no number then)
├── FederationError   an engine cannot be opened or does not answer
│   └── MessageLost       a message's upload was given up before it was whole
├── ReportError       a chart, video or page cannot be made
├── PublishError      a model or its numbers cannot leave the house
├── BenchmarkError    a benchmark cannot be measured, or something got worse
├── StackError        the Prefect server or worker on this machine does not start, or has ended
└── TransientError    the same call may work later: the one thing that is retried
    ├── RoundIncomplete   too few good updates arrived; finished ones are kept
    ├── NoAnswer          a server of the federation is not there
    └── CallRefused       the run that a call belongs to has been ended
"""


class Zk0Error(Exception):
    """Base of all errors that zk0 raises on purpose: one line that says what to do."""


class SettingsError(Zk0Error):
    """A session asks for something that does not exist or cannot be."""


class DatasetError(Zk0Error):
    """A data set is missing, broken, or does not fit the federation."""


class PolicyError(Zk0Error):
    """A policy cannot be built, or is not the one that was asked for."""


class SimulatorError(Zk0Error):
    """The simulator cannot render, or a scripted expert cannot do its task."""


class CheckpointError(Zk0Error):
    """Weights on disk are not the weights that were recorded."""


class UpdateError(Zk0Error):
    """One client's update is refused; the round may go on without it."""


class DiskFull(Zk0Error):
    """A file does not fit on its disk; what is finished is kept."""


class LedgerError(Zk0Error):
    """The record of a session contradicts itself."""


class EvaluationError(Zk0Error):
    """A measurement could not be made; there is no number then."""


class FederationError(Zk0Error):
    """An engine cannot be opened or does not answer."""


class MessageLost(FederationError):
    """A message's upload was given up before it was whole; its sender may be asked again."""


class ReportError(Zk0Error):
    """A chart, a video or a page cannot be made."""


class PublishError(Zk0Error):
    """A model or its numbers cannot leave the house."""


class BenchmarkError(Zk0Error):
    """A benchmark cannot be measured, or something got worse since the last good night."""


class StackError(Zk0Error):
    """The Prefect server or worker on this machine does not start, or has ended."""


class TransientError(Zk0Error):
    """The same call may work later: the only error that is retried."""


class RoundIncomplete(TransientError):
    """Too few good updates arrived; those that did are kept for the next attempt."""


class NoAnswer(TransientError):
    """A server of the federation is not there, or is overloaded."""


class CallRefused(TransientError):
    """The run that a call belongs to has been ended; a new one may go on."""
