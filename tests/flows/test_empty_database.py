"""The prepared database of the Prefect server is the one that Prefect's migrations make."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import prefect
import pytest

from flows.prefect_local.empty_database import SCHEMA, SQLITE_URL, create_empty_database
from flows.prefect_local.write_schema import migrated_schema


def objects(file: Path) -> list[Any]:
    """Every table, index and trigger with its SQL, and the version of the schema."""
    with closing(sqlite3.connect(file)) as database:
        named = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        return [*named, *database.execute("SELECT * FROM alembic_version").fetchall()]


def statements(schema: str) -> list[list[str]]:
    """The lines of each statement, sorted: migrations make indexes, and the constraints of a table, in any order."""
    return sorted(sorted(line.strip(" \t,") for line in one.splitlines()) for one in schema.split(";\n"))


def test_the_schema_is_that_of_the_installed_prefect() -> None:
    found, expected = SCHEMA.read_text(encoding="utf-8"), migrated_schema(prefect.__version__)
    assert len(found.splitlines()) > 500
    assert statements(found) == statements(expected), "run: python -m flows.prefect_local.write_schema"


def test_a_database_is_created_where_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "new home" / "prefect.db"
    assert create_empty_database(f"{SQLITE_URL}{file}", prefect.__version__)
    assert len(objects(file)) > 100
    assert [one.name for one in file.parent.iterdir()] == ["prefect.db"]
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("INSERT INTO flow (name) VALUES ('kept')")
    assert not create_empty_database(f"{SQLITE_URL}{file}", prefect.__version__)
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT name FROM flow").fetchall() == [("kept",)]


@pytest.mark.parametrize(
    ("url", "version"),
    [
        (f"{SQLITE_URL}{{folder}}/prefect.db", "3.0.0"),
        ("postgresql+asyncpg://user@127.0.0.1/{folder}", prefect.__version__),
        (f"{SQLITE_URL}:memory:", prefect.__version__),
    ],
)
def test_other_databases_are_left_to_prefect(tmp_path: Path, url: str, version: str) -> None:
    assert not create_empty_database(url.format(folder=tmp_path), version)
    assert list(tmp_path.iterdir()) == []
