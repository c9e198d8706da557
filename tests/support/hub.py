"""A local Hub for tests: a server with the part of the Hub's API that pushes and downloads use."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from hub_handler import HubHandler
from hub_state import Hub


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run an empty Hub during the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # seconds until it sees that it shall end
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
