"""Sessions of a search or a comparison: begun once, then taken up where they lie."""

from pathlib import Path

from tasks.children import session_command
from zk0.folder import SessionFolder
from zk0.session import load_session, parse_session

CLIENTS = [{"name": n, "dataset": f"sim:lift-{n}"} for n in ("red", "white")]
JUDGES = [{"dataset": "sim:lift-green"}]


def test_a_session_is_begun_once_and_then_taken_up(tmp_path: Path) -> None:
    values = {"clients": CLIENTS, "evaluation": {"datasets": JUDGES}, "output_dir": str(tmp_path / "made"), "rounds": 7}
    session, file = parse_session(values, "test"), tmp_path / "new" / "session.toml"
    assert session_command(session, file) == ["run", str(file), "--quiet"]
    assert load_session(file) == session
    file.unlink()
    for name in ("2026-01-01_10-00-00_zk0", "2026-01-02_10-00-00_zk0"):
        last = SessionFolder(tmp_path / "made" / name)
        last.create(session)
    assert session_command(session, file) == ["run", "--resume", str(last.path), "--quiet"]
    assert not file.exists(), "what has begun has its settings with it"
