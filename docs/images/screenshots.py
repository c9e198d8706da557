"""Pictures of a finished session in the Prefect UI, with Chromium.

    python docs/images/screenshots.py URL FOLDER [X,Y ...]

URL is where `zk0 ui` says the UI is. FOLDER gets, of the last completed session, prefect-run.png (its graph),
prefect-artifacts.png (its page with its artifacts) and prefect-losses.png (the loss table).

The graph is drawn on a canvas, so what is to be opened in it (a round, then `train round N`) is clicked by its place in
prefect-run.png: run the script, read off X,Y of the small arrow, run it again, and once more with the next one.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """The one page of a browser that is spoken to in JSON over two pipes (Chrome DevTools Protocol)."""

    def __init__(self, writer: int, reader: int) -> None:
        self._writer, self._reader, self._read = writer, reader, b""
        self._session: dict[str, str] = {}
        self._calls = 0
        (page,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def call(self, method: str, **params: Any) -> Any:
        """The answer to one command."""
        self._calls += 1
        command = {"id": self._calls, "method": method, "params": params, **self._session}
        os.write(self._writer, json.dumps(command).encode() + b"\0")
        while (answer := self._next()).get("id") != self._calls:
            pass  # events, of which we want none
        if "error" in answer:
            raise SystemExit(f"screenshots.py: {method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, url: str, height: int) -> None:
        """Load a page and wait until it is drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        time.sleep(5)
        self.picture()

    def click(self, x: float, y: float) -> None:
        """A click with the left button, and what comes of it."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.picture()

    def press(self, name: str) -> None:
        """A click on what is called so, or says so when the mouse is over it."""
        called = f"e => e.title?.startsWith({json.dumps(name)}) || e.innerText?.trim() === {json.dumps(name)}"
        found = f"[...document.querySelectorAll('body *')].findLast({called})"
        self.call("Runtime.evaluate", expression=f"{found}.click()")
        self.picture()

    def picture(self) -> bytes:
        """The page as a PNG, once it stands still."""
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
    """Chromium until the block ends."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("screenshots.py: no Chromium found")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # it reads commands from descriptor 3 and answers on 4
        shell = ["sh", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "sh"]
        chromium = subprocess.Popen(
            [*shell, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Page(ours_out, ours_in)
        finally:
            chromium.terminate()
            chromium.wait(30)


def ask(url: str, question: Any = None) -> Any:
    """The server's answer to GET, or to POST where there is a question."""
    data = None if question is None else json.dumps(question).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


def main(ui: str, folder: Path, clicks: list[tuple[float, float]]) -> None:
    """All pictures."""
    completed = {"flows": {"name": {"any_": ["zk0"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    found = ask(f"{ui}/api/flow_runs/filter", {**completed, "sort": "END_TIME_DESC", "limit": 1})
    if not found:
        raise SystemExit(f"screenshots.py: {ui} knows no completed session")
    run = found[0]
    mine = {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": ["round-losses"]}}
    losses = ask(f"{ui}/api/artifacts/filter", {"artifacts": mine, "sort": "CREATED_DESC"})[0]
    with browser() as page:
        page.open(f"{ui}/runs/flow-run/{run['id']}", 1000)
        page.press("Artifacts")
        (folder / "prefect-artifacts.png").write_bytes(page.picture())
        page.press("Toggle fullscreen")
        for x, y in clicks:
            page.click(x, y)
            page.press("Recenter graph")
        (folder / "prefect-run.png").write_bytes(page.picture())
        page.open(f"{ui}/artifacts/artifact/{losses['id']}", 600)
        (folder / "prefect-losses.png").write_bytes(page.picture())


if __name__ == "__main__":
    places = [tuple(float(one) for one in place.split(",")) for place in sys.argv[3:]]
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]), [(x, y) for x, y in places])
