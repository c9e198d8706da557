"""An empty database of the Prefect server, made from a file instead of by a hundred migrations (6 s of CPU time).

`python -m flows.prefect_local.empty_database` writes that file, `prefect_schema.sql`, for the installed Prefect.
"""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.prefect_local.prefect_process import CommandEnvironment, run_prefect

SCHEMA = Path(__file__).with_name("prefect_schema.sql")
_URL = "sqlite+aiosqlite:///"


def create_empty_database(url: str, version: str) -> bool:
    """Create the server's database if it does not exist; return whether it was created.

    Prefect creates it itself where it is no SQLite file, where the schema is that of another version, and on file
    systems without hard links, with which a database of another server is never overwritten.

    Args:
        url: `PREFECT_API_DATABASE_CONNECTION_URL`.
        version: of Prefect.
    """
    schema, file = SCHEMA.read_text(encoding="utf-8"), Path(url.removeprefix(_URL))
    if not (url.startswith(_URL) and file.is_absolute() and schema.startswith(_header(version))) or file.exists():
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


def migrated_schema(version: str) -> str:
    """Return what `prefect_schema.sql` must hold: the database that Prefect's migrations make, as SQL.

    Args:
        version: of the installed Prefect.
    """
    with TemporaryDirectory() as folder:
        home = Path(folder)
        file = home / "prefect.db"
        variables = {
            **os.environ,
            "PREFECT_HOME": folder,
            "PREFECT_API_DATABASE_CONNECTION_URL": f"{_URL}{file}",
        }
        run_prefect("migrations", ["server", "database", "upgrade", "-y"], CommandEnvironment(home, variables, home))
        with closing(sqlite3.connect(file)) as database:
            return "\n".join([_header(version), *database.iterdump(), ""])


def _header(version: str) -> str:
    return f"-- written by flows.prefect_local.empty_database from the migrations of prefect {version}\n"


if __name__ == "__main__":
    import prefect

    SCHEMA.write_text(migrated_schema(prefect.__version__), encoding="utf-8")
