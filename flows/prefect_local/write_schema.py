"""Writes `prefect_schema.sql`: the database that the migrations of the installed Prefect make, as SQL.

To be run after an upgrade of Prefect: `python -m flows.prefect_local.write_schema`.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.prefect_local.empty_database import SCHEMA, SQLITE_URL, schema_header
from flows.prefect_local.prefect_process import CommandEnvironment, run_prefect


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
            "PREFECT_API_DATABASE_CONNECTION_URL": f"{SQLITE_URL}{file}",
        }
        run_prefect("migrations", ["server", "database", "upgrade", "-y"], CommandEnvironment(home, variables, home))
        with closing(sqlite3.connect(file)) as database:
            return "\n".join([schema_header(version), *database.iterdump(), ""])


if __name__ == "__main__":
    import prefect

    SCHEMA.write_text(migrated_schema(prefect.__version__), encoding="utf-8")
