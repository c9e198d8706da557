"""Sessions of a search or a benchmark: started once, then resumed."""

from pathlib import Path

from tasks.subprocesses import run_or_resume_arguments
from zk0.settings.loading import load_session, parse_session
from zk0.storage.session_folder import SessionFolder

CLIENTS = [{"name": n, "dataset": f"sim:lift-{n}"} for n in ("red", "white")]
SETS = [{"dataset": "sim:lift-green"}]


def test_a_session_is_started_once_and_then_resumed(tmp_path: Path) -> None:
    values = {
        "clients": CLIENTS,
        "evaluation": {"datasets": SETS},
        "output_dir": str(tmp_path / "made"),
        "rounds": 7,
    }
    session, file = parse_session(values, "test"), tmp_path / "new" / "session.toml"
    assert run_or_resume_arguments(session, file) == ["run", str(file), "--quiet"]
    assert load_session(file) == session
    file.unlink()
    for name in ("2026-01-01_10-00-00_zk0", "2026-01-02_10-00-00_zk0"):
        last = SessionFolder(tmp_path / "made" / name)
        last.create(session)
    assert run_or_resume_arguments(session, file) == ["run", "--resume", str(last.path), "--quiet"]
    assert not file.exists(), "a session that has started has its own session.toml"
