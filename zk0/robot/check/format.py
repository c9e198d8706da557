"""Rules about the format: version, features, columns and their types."""

from collections.abc import Iterator

from zk0.records import ACTION, STATE, Finding
from zk0.robot.check.contents import Contents
from zk0.robot.check.say import some
from zk0.robot.folder import leaves_folder
from zk0.robot.info import INFO_PATH

DEFAULT_FEATURES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
ARROW_TYPES = {
    "float32": "float",
    "float64": "double",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
    "string": "string",
}


def format_version(contents: Contents) -> Iterator[Finding]:
    """LeRobot 0.6 reads v3.0 only."""
    if contents.info and (version := contents.info.codebase_version) != "v3.0":
        yield Finding(
            rule="format-version",
            where=f"{INFO_PATH} codebase_version",
            found=version[:40],
            expected="v3.0",
            repair="convert-to-v3" if version in ("v2.0", "v2.1") else None,
        )


def state_and_action(contents: Contents) -> Iterator[Finding]:
    """Every data set has observation.state and action, under these names or under those of the rename_map."""
    if contents.info is None:
        return
    for key in (STATE, ACTION):
        if key in contents.info.features or key in contents.given_renames.values():
            continue
        old = next((o for o, new in contents.renames.items() if new == key), None)
        yield Finding(
            rule="feature-keys",
            where=f"{INFO_PATH} features",
            found=f"{old} instead of {key}" if old else f"no {key}",
            expected=key,
            repair="rename-keys" if old else None,
        )


def feature_names(contents: Contents) -> Iterator[Finding]:
    """Feature keys become folder names: LeRobot wants no `/` in them, and none may lead out of the folder."""
    wrong = [k for k in (contents.info.features if contents.info else ()) if "/" in k or leaves_folder(k) or not k]
    if wrong:
        yield Finding(
            rule="feature-names", where=f"{INFO_PATH} features", found=some(wrong), expected="keys without / and .."
        )


def default_features(contents: Contents) -> Iterator[Finding]:
    """The five columns that LeRobot adds to every data set are declared."""
    if contents.info is None:
        return
    missing = [k for k in DEFAULT_FEATURES if k not in contents.info.features]
    if missing:
        yield Finding(
            rule="default-features",
            where=f"{INFO_PATH} features",
            found=f"no {some(missing)}",
            expected=some(list(DEFAULT_FEATURES)),
            repair="declare-features",
        )


def undeclared_columns(contents: Contents) -> Iterator[Finding]:
    """LeRobot cannot load a column that info.json does not declare."""
    if contents.info is None:
        return
    known = {*contents.info.features, *DEFAULT_FEATURES}
    extra = sorted({c for f in contents.frames for c in f.types if c not in known})
    if extra:
        yield Finding(
            rule="undeclared-columns",
            where="data",
            found=f"columns {some(extra)}",
            expected=f"only columns that {INFO_PATH} declares",
            repair="drop-columns",
        )


def missing_columns(contents: Contents) -> Iterator[Finding]:
    """Every declared column is in every file."""
    if contents.info is None or not contents.frames:
        return
    videos = contents.info.video_keys
    wanted = [c for c in {**contents.info.features, **DEFAULT_FEATURES} if c not in videos]
    missing = [c for c in wanted if any(c not in f.types for f in contents.frames)]
    if missing:
        derivable = {"timestamp", "frame_index", "index", "task_index"}
        yield Finding(
            rule="missing-columns",
            where="data",
            found=f"no column {some(missing)}",
            expected=f"every feature that is no video, and {some(list(DEFAULT_FEATURES))}",
            repair="add-columns" if set(missing) <= derivable else None,
        )


def column_types(contents: Contents) -> Iterator[Finding]:
    """Columns are stored in the type that is declared."""
    if contents.info is None:
        return
    declared = {k: f.dtype for k, f in contents.info.features.items()} | DEFAULT_FEATURES
    wrong = sorted(
        {
            f"{column} {stored} for {declared[column]}"
            for f in contents.frames
            for column, stored in f.types.items()
            if column in declared and stored != ARROW_TYPES.get(declared[column], stored)
        }
    )
    if wrong:
        yield Finding(
            rule="column-types", where="data", found=some(wrong), expected="the declared types", repair="cast-columns"
        )


RULES = (
    format_version,
    state_and_action,
    feature_names,
    default_features,
    undeclared_columns,
    missing_columns,
    column_types,
)
