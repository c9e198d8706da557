"""Rules about the format: version, features, columns and their types."""

from collections.abc import Iterator

from zk0.data.arrow_types import ARROW_TYPES
from zk0.data.check.contents import Contents
from zk0.data.check.rule import RuleGroup, Violation
from zk0.data.dataset_folder import points_outside
from zk0.data.dataset_info import DEFAULT_FEATURES, INFO_PATH
from zk0.name_lists import join_names
from zk0.records import ACTION, STATE

FORMAT_RULES = RuleGroup[[Contents], Violation]("Format", __name__)
DERIVABLE_COLUMNS = {"timestamp", "frame_index", "index", "task_index"}
"""Default columns whose values follow from the order of the rows and from the episode table."""


@FORMAT_RULES.rule("format-version", repairs=("convert-to-v3",), repair_if="the version is v2.0 or v2.1")
def format_version(contents: Contents) -> Iterator[Violation]:
    """The format version is v3.0, the only one that LeRobot 0.6 reads."""
    if contents.info and (version := contents.info.codebase_version) != "v3.0":
        yield Violation(
            where=f"{INFO_PATH} codebase_version",
            found=version[:40],
            expected="v3.0",
            repairable=version in ("v2.0", "v2.1"),
        )


@FORMAT_RULES.rule(
    "feature-keys", repairs=("rename-keys",), repair_if="exactly one feature has a common other name, such as `state`"
)
def feature_keys(contents: Contents) -> Iterator[Violation]:
    """The dataset has `observation.state` and `action`, under these keys or under those of the rename_map."""
    if contents.info is None:
        return
    for key in (STATE, ACTION):
        if key in contents.info.features or key in contents.given_renames.values():
            continue
        old = next((o for o, new in contents.renames.items() if new == key), None)
        yield Violation(
            where=f"{INFO_PATH} features",
            found=f"{old} instead of {key}" if old else f"no {key}",
            expected=key,
            repairable=old is not None,
        )


@FORMAT_RULES.rule("feature-names")
def feature_names(contents: Contents) -> Iterator[Violation]:
    """Feature keys are not empty and contain neither `/` nor `..`, because they become names of folders."""
    wrong = [k for k in (contents.info.features if contents.info else ()) if "/" in k or points_outside(k) or not k]
    if wrong:
        yield Violation(f"{INFO_PATH} features", join_names(wrong), "keys without / and ..")


@FORMAT_RULES.rule("default-features", repairs=("declare-features",))
def default_features(contents: Contents) -> Iterator[Violation]:
    """`meta/info.json` declares the five columns that LeRobot adds to every dataset."""
    if contents.info is None:
        return
    missing = [k for k in DEFAULT_FEATURES if k not in contents.info.features]
    if missing:
        yield Violation(f"{INFO_PATH} features", f"no {join_names(missing)}", join_names(list(DEFAULT_FEATURES)))


@FORMAT_RULES.rule("undeclared-columns", repairs=("drop-columns",))
def undeclared_columns(contents: Contents) -> Iterator[Violation]:
    """`meta/info.json` declares every column; LeRobot cannot load others."""
    if contents.info is None:
        return
    known = {*contents.info.features, *DEFAULT_FEATURES}
    extra = sorted({c for t in contents.frame_tables for c in t.types if c not in known})
    if extra:
        yield Violation("data", f"columns {join_names(extra)}", f"only columns that {INFO_PATH} declares")


@FORMAT_RULES.rule(
    "missing-columns",
    repairs=("add-columns",),
    repair_if="only timestamp, frame_index, index or task_index are missing",
)
def missing_columns(contents: Contents) -> Iterator[Violation]:
    """Every file has every declared column (videos have none) and the five default columns."""
    if contents.info is None or not contents.frame_tables:
        return
    videos = contents.info.video_keys
    wanted = [c for c in {**contents.info.features, **DEFAULT_FEATURES} if c not in videos]
    missing = [c for c in wanted if any(c not in t.types for t in contents.frame_tables)]
    if missing:
        yield Violation(
            where="data",
            found=f"no column {join_names(missing)}",
            expected=f"every feature that is not a video, and {join_names(list(DEFAULT_FEATURES))}",
            repairable=set(missing) <= DERIVABLE_COLUMNS,
        )


@FORMAT_RULES.rule("column-types", repairs=("cast-columns",))
def column_types(contents: Contents) -> Iterator[Violation]:
    """Every column is stored in its declared type."""
    if contents.info is None:
        return
    declared = {k: f.dtype for k, f in contents.info.features.items()} | DEFAULT_FEATURES
    wrong = sorted(
        {
            f"{column} {stored} for {declared[column]}"
            for table in contents.frame_tables
            for column, stored in table.types.items()
            if column in declared and stored != ARROW_TYPES.get(declared[column], stored)
        }
    )
    if wrong:
        yield Violation("data", join_names(wrong), "the declared types")
