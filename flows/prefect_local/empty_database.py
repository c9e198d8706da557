"""An empty database of the Prefect server, made from a file instead of by a hundred migrations (6 s of CPU time).

`python -m flows.prefect_local.write_schema` writes that file, `prefect_schema.sql`.
"""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

SCHEMA = Path(__file__).with_name("prefect_schema.sql")
SQLITE_URL = "sqlite+aiosqlite:///"


def create_empty_database(url: str, version: str) -> bool:
    """Create the server's database if it does not exist; return whether it was created.

    Prefect creates it itself where it is no SQLite file, where the schema is that of another version, and on file
    systems without hard links, with which a database of another server is never overwritten.

    Args:
        url: `PREFECT_API_DATABASE_CONNECTION_URL`.
        version: of Prefect.
    """
    schema, file = SCHEMA.read_text(encoding="utf-8"), Path(url.removeprefix(SQLITE_URL))
    fits = url.startswith(SQLITE_URL) and file.is_absolute() and schema.startswith(schema_header(version))
    if not fits or file.exists():
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with closing(sqlite3.connect(half)) as database:
            database.executescript(schema)
        with suppress(OSError):
            os.link(half, file)
            return True
    finally:
        half.unlink(missing_ok=True)
    return False


def schema_header(version: str) -> str:
    """Return the first line of `prefect_schema.sql` for a version of Prefect."""
    return f"-- written by flows.prefect_local.write_schema from the migrations of prefect {version}\n"
