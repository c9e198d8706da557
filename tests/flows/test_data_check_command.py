"""`zk0 data check`: it says whether the rules of a federation were checked."""

from pathlib import Path

from typer.testing import CliRunner

from flows.cli.main import zk0_app


def test_without_a_session_no_contract_is_checked(recordings: dict[str, Path]) -> None:
    command = ["data", "check", f"local:{recordings['a']}", "--quick"]
    alone, within = (CliRunner().invoke(zk0_app, [*command, *more]) for more in ([], ["--session", "smoke"]))
    assert "no federation's rules were checked: --session FILE" in alone.stdout
    assert "no federation's rules" not in within.stdout
    assert alone.exit_code == within.exit_code == 0, within.output
