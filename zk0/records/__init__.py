"""The small frozen values that travel between the steps of a session, and that its files hold as JSON.

Tensors never travel in a record: it names them by path, digest and bytes. Import every record from here.
"""

from zk0.records.bounds import MAX_INDEX, MAX_TEXT, Text, clean_text
from zk0.records.dataset_records import (
    ACTION,
    CAMERA_PREFIX,
    MAX_LISTED_EPISODES,
    STATE,
    CalibrationName,
    DataQuality,
    DatasetReport,
    Finding,
    JoiningStep,
    JoiningStepName,
    JointUnits,
    Member,
    Moments,
    NormalizationKind,
    PolicyRecipe,
    Split,
    Statistics,
    StatisticsGroup,
)
from zk0.records.evaluation_records import (
    ClientEvaluation,
    ClientScore,
    EpisodeScore,
    Evaluation,
    SetScore,
)
from zk0.records.record import Record
from zk0.records.rollout_records import EpisodeVideo, Rollout, RolloutSubject
from zk0.records.round_records import Checkpoint, PrivacySpent, RoundDecision, RoundRecord, ServerState
from zk0.records.update_records import (
    ClientMetrics,
    Contribution,
    DigestAlgorithm,
    LoraShape,
    Refusal,
    Update,
    WireDtype,
    WireFormat,
)

__all__ = [
    "ACTION",
    "CAMERA_PREFIX",
    "MAX_INDEX",
    "MAX_LISTED_EPISODES",
    "MAX_TEXT",
    "STATE",
    "CalibrationName",
    "Checkpoint",
    "ClientEvaluation",
    "ClientMetrics",
    "ClientScore",
    "Contribution",
    "DataQuality",
    "DatasetReport",
    "DigestAlgorithm",
    "EpisodeScore",
    "EpisodeVideo",
    "Evaluation",
    "Finding",
    "JoiningStep",
    "JoiningStepName",
    "JointUnits",
    "LoraShape",
    "Member",
    "Moments",
    "NormalizationKind",
    "PolicyRecipe",
    "PrivacySpent",
    "Record",
    "Refusal",
    "Rollout",
    "RolloutSubject",
    "RoundDecision",
    "RoundRecord",
    "ServerState",
    "SetScore",
    "Split",
    "Statistics",
    "StatisticsGroup",
    "Text",
    "Update",
    "WireDtype",
    "WireFormat",
    "clean_text",
]
