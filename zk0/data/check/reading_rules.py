"""Rules about files that the check itself must read; `zk0.data.check.contents` reports their violations."""

from zk0.data.check.rule import RuleGroup, Violation

READING_RULES = RuleGroup[[], Violation]("Files that must be readable", __name__)

LFS_POINTERS = READING_RULES.declare(
    "lfs-pointers", "Files hold data and not Git LFS pointers, which a clone without git-lfs leaves in their place."
)
INFO = READING_RULES.declare(
    "info",
    "`meta/info.json` is JSON and states codebase_version, fps and features. Nearly all other rules need it.",
)
EPISODE_TABLE = READING_RULES.declare(
    "episode-table",
    "The episode table is readable and every path that it implies lies inside the dataset's folder.",
    repairs=("rebuild-episodes",),
    repair_if="the rows are whole, and in v3 each camera has exactly their frames in videos numbered without a gap",
)
TASK_TABLE = READING_RULES.declare(
    "task-table",
    "The task table is readable and each row has an index and a text.",
    repairs=("rebuild-tasks",),
    repair_if="the episode table and the task numbers of the rows prove every text",
)
STATISTICS_MISSING = READING_RULES.declare(
    "statistics-missing",
    "`meta/stats.json` is readable and has statistics of state, action and every camera.",
    severity="warning",
    error_if="the file is unreadable, or those of state or action are missing",
    repairs=("recompute-statistics",),
)
UNREADABLE_DATA = READING_RULES.declare(
    "unreadable-data",
    "Every parquet file below `data/` is readable, and its numeric columns have one width.",
    repairs=("drop-episodes", "remove-orphans"),
    repair_if="the episode table is readable: the first if it names the file and an episode remains, else the second",
)
UNREADABLE_VIDEO = READING_RULES.declare(
    "unreadable-video",
    "Every video that the episode table names is a readable video file.",
    repairs=("drop-episodes",),
    repair_if="an episode remains",
)
