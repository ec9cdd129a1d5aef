"""A real Chromium without a window, driven through chromedriver by the WebDriver protocol (W3C).

Calls block.  The servers under test are processes of their own, so no reactor has to run meanwhile.
"""

from __future__ import annotations

import atexit
import http.client
import json
import select
import shutil
import socket
import socketserver
import tempfile
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from harness.processes import ROOT, Process

CLIENT = ROOT / "asyncplumber" / "http" / "static" / "asyncplumber.js"
WORLD = Path(__file__).parent / "fake_browser.js"
TIMEOUT = 30.0  # seconds; the machine may be busy, and a client waits before it reconnects
INTERVAL = 0.02  # seconds between two looks at the page
FLAGS = [
    "--headless=new",
    "--window-size=1100,900",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    # To run as root or in a container:
    "--no-sandbox",
    "--disable-dev-shm-usage",
    # It connects to the servers under test and to nothing else:
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The body of an async function becomes a script that calls WebDriver back.
ASYNC = """
const done = arguments[arguments.length - 1], args = [...arguments].slice(0, -1);
(async () => {%s})().then(
  (value) => done({value}),
  (error) => done({thrown: String(error.stack || error)}),
);
"""


def missing() -> str | None:
    """Return why no browser can be started here; None if one can."""
    if shutil.which("chromedriver") is None:
        return "no chromedriver on the PATH"
    return None if _chromium() else "no chromium (or google-chrome) on the PATH"


def _chromium() -> str | None:
    names = ["chromium", "chromium-browser", "google-chrome"]
    return next(filter(None, map(shutil.which, names)), None)


class BrowserFailed(AssertionError):
    """The browser refused a command, a script threw, or a condition did not become true in time."""


class Browser:
    """One window.  A start costs more than most tests, so ``browser()`` keeps one."""

    def __init__(self, *flags: str) -> None:
        """Start a browser; ``flags`` are added to Chromium's command line."""
        self._folder = tempfile.TemporaryDirectory(
            prefix="asyncplumber-browser-", ignore_cleanup_errors=True
        )
        # The profile, and the sockets that Chromium leaves behind, go where they can be removed.
        self._driver = Process(["chromedriver", "--port=0"], {"TMPDIR": self._folder.name})
        atexit.register(self.quit)
        port = int(self._driver.wait_for(r"started successfully on port (\d+)")[1])
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT * 2)
        self._session = ""
        # chromedriver makes a fresh profile for each session, and removes it.
        options = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": _chromium(), "args": [*FLAGS, *flags]},
        }
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self._session = "/session/" + session["sessionId"]
        self._call("POST", "/timeouts", {"script": int(TIMEOUT * 1000)})

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        self._http.request(method, self._session + path, None if body is None else json.dumps(body))
        value = json.loads(self._http.getresponse().read())["value"]
        if isinstance(value, dict) and "error" in value:
            raise BrowserFailed(f"{value['error']}: {value['message']}")
        return value

    def go(self, url: str) -> None:
        """Load a page, and wait until it is loaded.

        Leaves the page before it, also if only the hash of the URL differs.
        """
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": url})

    def reload(self) -> None:
        """Load the page again, as a user does."""
        self._call("POST", "/refresh", {})

    def run(self, script: str, *args: Any) -> Any:
        """Run the body of an async function, and return what it returns, as JSON.

        Raises:
            BrowserFailed: The script threw.
        """
        answer = self._call("POST", "/execute/async", {"script": ASYNC % script, "args": args})
        if "thrown" in answer:
            raise BrowserFailed(answer["thrown"])
        return answer.get("value")

    def until(self, script: str, *args: Any, seconds: float = TIMEOUT) -> Any:
        """Run a script again and again until it returns something true, and return that."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script, *args)):
            if time.monotonic() > deadline:
                text = self.run("return document.body.innerText")
                raise BrowserFailed(f"not in {seconds:g} seconds: {script}\n{text}")
            time.sleep(INTERVAL)
        return value

    def click(self, id: str) -> None:
        """Click the element of this id, as a user does."""
        element = self._call("POST", "/element", {"using": "css selector", "value": f"#{id}"})
        self._call("POST", f"/element/{next(iter(element.values()))}/click", {})

    def open_tabs(self, count: int) -> list[str]:
        """Open so many blank tabs beside the one that is there; return the names of all."""
        first = self._call("GET", "/window")
        return [first] + [
            self._call("POST", "/window/new", {"type": "tab"})["handle"] for _ in range(count)
        ]

    def switch_to(self, tab: str) -> None:
        """Go on in this tab.  The others stay as they are."""
        self._call("POST", "/window", {"handle": tab})

    def close_tabs(self, tabs: list[str]) -> None:
        """Close all of these tabs but the first one, and go on in that."""
        for tab in tabs[1:]:
            self.switch_to(tab)
            self._call("DELETE", "/window")
        self.switch_to(tabs[0])

    def errors(self) -> list[str]:
        """Return what the browser logged as an error since the last call."""
        return [
            entry["message"]
            for entry in self._call("POST", "/se/log", {"type": "browser"})
            if entry["level"] == "SEVERE"
        ]

    def resize(self, width: int, height: int) -> None:
        """Make the page this wide and high, in CSS pixels, as a phone or a screen would."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self._call("POST", "/goog/cdp/execute", command)

    def screenshot(self, path: Path) -> None:
        """Save the page as PNG."""
        path.write_bytes(b64decode(self._call("GET", "/screenshot")))

    def quit(self) -> None:
        """End the browser and its driver.  Idempotent."""
        atexit.unregister(self.quit)
        if self._session:
            with suppress(OSError, http.client.HTTPException, BrowserFailed):
                self._call("DELETE", "")
        self._session = ""
        self._http.close()
        self._driver.kill()
        self._folder.cleanup()


@cache
def browser() -> Browser:
    """Return the browser that all tests of this process share."""
    return Browser()


class ProxyWithoutWebSockets(socketserver.ThreadingTCPServer):
    """A proxy in front of a server that answers 403 to WebSockets and passes the rest on."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        """Listen in front of the server at this port of this machine."""
        super().__init__(("127.0.0.1", 0), _ProxiedConnection)
        self.server_behind = ("127.0.0.1", port)
        self.refused = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Accept no more connections."""
        self.shutdown()
        self.server_close()


class _ProxiedConnection(socketserver.BaseRequestHandler):
    server: ProxyWithoutWebSockets
    REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def handle(self) -> None:
        client = self.request
        with suppress(OSError), socket.create_connection(self.server.server_behind) as server:
            other = {client: server, server: client}
            while True:
                for end in select.select(list(other), [], [])[0]:
                    piece = end.recv(65536)
                    if end is client and b"upgrade: websocket" in piece.lower():
                        self.server.refused += 1
                        client.sendall(self.REFUSAL)
                        return
                    if not piece:
                        return
                    other[end].sendall(piece)


def in_fake_world(script: str) -> Callable[[], Any]:
    """Return a function that runs a script in a blank page, with the client and ``World``."""

    def run() -> Any:
        browser().go("about:blank")
        evaluate = "(0, eval)(args[0]); (0, eval)(args[1]); "
        return browser().run(evaluate + script, CLIENT.read_text(), WORLD.read_text())

    return run
