"""Takes screenshots of a finished session in the Prefect UI, with Chromium.

    python docs/images/screenshots.py URL FOLDER [X,Y ...]

URL is the address of the UI that `zk0 ui` prints, with the key after #. FOLDER is where the pictures of the last
completed session go: prefect-run.png (its graph), prefect-artifacts.png (its page with its artifacts),
prefect-losses.png (the loss table).

The graph is drawn on a canvas, so a node in it (a round, then `train round N`) is expanded by a click on a position in
prefect-run.png: run the script, read X,Y of the node's small arrow from the picture, and run the script again with it.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowFilter, FlowRunFilter
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # the graph is drawn with WebGL
    "--hide-scrollbars",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
WIDTH = 1500


class Page:
    """The only page of a browser that is controlled with JSON messages over two pipes (Chrome DevTools Protocol)."""

    def __init__(self, writer: int, reader: int) -> None:
        self._writer, self._reader, self._read = writer, reader, b""
        self._session: dict[str, str] = {}
        self._calls = 0
        (page,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def call(self, method: str, **params: Any) -> Any:
        """Send one command and return its result."""
        self._calls += 1
        command = {"id": self._calls, "method": method, "params": params, **self._session}
        os.write(self._writer, json.dumps(command).encode() + b"\0")
        while (answer := self._next()).get("id") != self._calls:
            pass  # events are ignored
        if "error" in answer:
            raise SystemExit(f"screenshots.py: {method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, url: str, height: int) -> None:
        """Load a page and wait until it no longer changes."""
        self.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        time.sleep(5)
        self.picture()

    def click(self, x: float, y: float) -> None:
        """Click with the left button and wait until the page no longer changes."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.picture()

    def press(self, name: str) -> None:
        """Click on the element with this text or tooltip."""
        matches = f"e => e.title?.startsWith({json.dumps(name)}) || e.innerText?.trim() === {json.dumps(name)}"
        found = f"[...document.querySelectorAll('body *')].findLast({matches})"
        self.call("Runtime.evaluate", expression=f"{found}.click()")
        self.picture()

    def picture(self) -> bytes:
        """Return the page as a PNG when it no longer changes."""
        before, now = b"", self._picture()
        for _ in range(20):
            time.sleep(1)
            before, now = now, self._picture()
            if before == now:
                return now
        return now

    def _picture(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _next(self) -> Any:
        while b"\0" not in self._read:
            self._read += os.read(self._reader, 1 << 20)
        message, self._read = self._read.split(b"\0", 1)
        return json.loads(message)


@contextmanager
def browser() -> Iterator[Page]:
    """Run Chromium during the block."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("screenshots.py: no Chromium found")
    browser_in, writer = os.pipe()
    reader, browser_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads commands from descriptor 3 and answers on 4
        shell = ["sh", "-c", f'exec "$@" 3<&{browser_in} 4>&{browser_out}', "sh"]
        chromium = subprocess.Popen(
            [*shell, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(browser_in, browser_out),
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Page(writer, reader)
        finally:
            chromium.terminate()
            chromium.wait(30)


def last_session(ui: str, key: str) -> tuple[str, str]:
    """Return the ids of the last completed session and of its loss table."""
    with SyncPrefectClient(f"{ui}/api", auth_string=key) as client:
        flow = FlowFilter.model_validate({"name": {"any_": ["zk0"]}})
        run = FlowRunFilter.model_validate({"state": {"type": {"any_": ["COMPLETED"]}}})
        runs = client.read_flow_runs(flow_filter=flow, flow_run_filter=run, sort=FlowRunSort.END_TIME_DESC, limit=1)
        if not runs:
            raise SystemExit(f"screenshots.py: {ui} has no completed session")
        losses = ArtifactFilter.model_validate(
            {"flow_run_id": {"any_": [runs[0].id]}, "key": {"any_": ["round-losses"]}}
        )
        found = client.read_artifacts(artifact_filter=losses, sort=ArtifactSort.CREATED_DESC, limit=1)
    return str(runs[0].id), str(found[0].id)


def main(sign_in: str, folder: Path, clicks: list[tuple[float, float]]) -> None:
    """Take all screenshots."""
    address = urlsplit(sign_in)
    ui = f"{address.scheme}://{address.netloc}"
    run, losses = last_session(ui, unquote(address.fragment))
    with browser() as page:
        page.open(sign_in, 1000)
        page.open(f"{ui}/runs/flow-run/{run}", 1000)
        page.press("Artifacts")
        (folder / "prefect-artifacts.png").write_bytes(page.picture())
        page.press("Toggle fullscreen")
        for x, y in clicks:
            page.click(x, y)
            page.press("Recenter graph")
        (folder / "prefect-run.png").write_bytes(page.picture())
        page.open(f"{ui}/artifacts/artifact/{losses}", 600)
        (folder / "prefect-losses.png").write_bytes(page.picture())


if __name__ == "__main__":
    places = [tuple(float(one) for one in place.split(",")) for place in sys.argv[3:]]
    main(sys.argv[1], Path(sys.argv[2]), [(x, y) for x, y in places])
