"""Pictures of a finished session in the Prefect UI, with Chromium: `python docs/images/screenshots.py URL FOLDER`.

URL is where `zk0 ui` says the UI is. FOLDER gets prefect-run.png, prefect-artifacts.png, prefect-report.png and
prefect-deployment.png of the last completed session.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # the timeline is drawn with WebGL
    "--hide-scrollbars",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=40000",
)


def ask(url: str, question: Any = None) -> Any:
    """The server's answer to GET, or to POST where there is a question."""
    data = None if question is None else json.dumps(question).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


def photograph(page: str, target: Path, height: int) -> None:
    """The page as a PNG, 1500 pixels wide."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("screenshots.py: no Chromium found")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size=1500,{height}"]
        subprocess.run([*command, f"--screenshot={target}", page], check=True, timeout=180, stderr=subprocess.DEVNULL)


def main(ui: str, folder: Path) -> None:
    """All pictures."""
    completed = {"flows": {"name": {"any_": ["zk0"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    found = ask(f"{ui}/api/flow_runs/filter", {**completed, "sort": "END_TIME_DESC", "limit": 1})
    if not found:
        raise SystemExit(f"screenshots.py: {ui} knows no completed session")
    run = found[0]
    mine = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": ["session-report"]}}}
    report = ask(f"{ui}/api/artifacts/filter", mine)[0]
    photograph(f"{ui}/runs/flow-run/{run['id']}", folder / "prefect-run.png", 1000)
    photograph(f"{ui}/artifacts", folder / "prefect-artifacts.png", 1000)
    photograph(f"{ui}/artifacts/artifact/{report['id']}", folder / "prefect-report.png", 3200)
    photograph(f"{ui}/deployments/deployment/{run['deployment_id']}", folder / "prefect-deployment.png", 1000)


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]))
