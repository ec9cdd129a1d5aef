"""
A real Chromium without a window, driven through chromedriver by the WebDriver protocol (W3C) and
nothing but HTTP.

Calls block: the servers under test are processes of their own, so no reactor is kept from its work.
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
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from harness.processes import ROOT, Process

CLIENT = ROOT / "asyncplumber" / "http" / "static" / "asyncplumber.js"
DEADLINE = 30.0  # seconds; for a busy machine, and for a client that waits before it comes back
LOOK = 0.02  # seconds between two looks at the page
FLAGS = [
    *(
        "--headless=new",
        "--window-size=1100,900",
        "--no-first-run",
        "--disable-gpu",
        "--disable-quic",
    ),
    *("--no-sandbox", "--disable-dev-shm-usage"),  # as root, or in a container
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ),  # it speaks to nobody else
]


def missing() -> str | None:
    """Why there can be no browser here; None where there can."""
    if shutil.which("chromedriver") is None:
        return "no chromedriver on the PATH"
    return None if _chromium() else "no chromium (or google-chrome) on the PATH"


def _chromium() -> str | None:
    return next(
        filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
    )


class BrowserFailed(AssertionError):
    """
    The browser refused a command, a script threw, or the page did not become what was waited for.
    """


class Browser:
    """One window.  `cache`d by `browser()`, because a start costs more than most tests."""

    def __init__(self, *flags: str) -> None:
        """`flags` are further ones of Chromium's command line."""
        self._folder = tempfile.TemporaryDirectory(
            prefix="asyncplumber-browser-", ignore_cleanup_errors=True
        )
        # The profile, and the sockets that Chromium leaves behind, go where they can be removed.
        self._driver = Process(["chromedriver", "--port=0"], {"TMPDIR": self._folder.name})
        atexit.register(self.quit)
        port = int(self._driver.wait_for(r"started successfully on port (\d+)")[1])
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE * 2)
        self._session = ""
        # chromedriver makes a fresh profile for each session, and removes it.
        options = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": _chromium(), "args": [*FLAGS, *flags]},
        }
        self._session = (
            "/session/"
            + self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})[
                "sessionId"
            ]
        )
        self._call("POST", "/timeouts", {"script": int(DEADLINE * 1000)})

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        self._http.request(method, self._session + path, None if body is None else json.dumps(body))
        value = json.loads(self._http.getresponse().read())["value"]
        if isinstance(value, dict) and "error" in value:
            raise BrowserFailed(f"{value['error']}: {value['message']}")
        return value

    def go(self, url: str) -> None:
        """
        Load a page and wait until it is loaded.  The page before is left, even if only the hash
        differs.
        """
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """
        What the body of an async function returns, as JSON.  Raises `BrowserFailed` with what it
        throws.
        """
        wrapped = (
            "const done = arguments[arguments.length - 1], args = [...arguments].slice(0, -1);"
            "(async () => {%s})().then((value) => done({value}), (error) => done({thrown: String(error.stack || error)}))"
        )
        answer = self._call("POST", "/execute/async", {"script": wrapped % script, "args": args})
        if "thrown" in answer:
            raise BrowserFailed(answer["thrown"])
        return answer.get("value")

    def until(self, script: str, *args: Any, seconds: float = DEADLINE) -> Any:
        """Look at the page until the script returns something true, and return that."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script, *args)):
            if time.monotonic() > deadline:
                raise BrowserFailed(
                    f"not in {seconds:g} seconds: {script}\n{self.run('return document.body.innerText')}"
                )
            time.sleep(LOOK)
        return value

    def click(self, id: str) -> None:
        """Click the element of this id as a user does."""
        element = self._call("POST", "/element", {"using": "css selector", "value": f"#{id}"})
        self._call("POST", f"/element/{next(iter(element.values()))}/click", {})

    def complaints(self) -> list[str]:
        """
        What the browser logged as an error since the last call: exceptions, refused resources.
        """
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
        """Save what is seen as PNG."""
        from base64 import b64decode

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
    """The browser that all tests of this process share."""
    return Browser()


class NoWebSockets(socketserver.ThreadingTCPServer):
    """
    A proxy on the way to a server, of the kind that knows no WebSockets: it answers 403 to them and
    passes the rest on.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)
        self.behind = ("127.0.0.1", port)
        self.refused = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        self.shutdown()
        self.server_close()


class _Passage(socketserver.BaseRequestHandler):
    server: NoWebSockets

    def handle(self) -> None:
        with suppress(OSError), socket.create_connection(self.server.behind) as behind:
            ways = {self.request: behind, behind: self.request}
            while True:
                for end in select.select(list(ways), [], [])[0]:
                    piece = end.recv(65536)
                    if end is self.request and b"upgrade: websocket" in piece.lower():
                        self.server.refused += 1
                        end.sendall(
                            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                        )
                        return
                    if not piece:
                        return
                    ways[end].sendall(piece)


def in_fake_world(script: str) -> Callable[[], Any]:
    """
    A function that runs the script in a blank page with the client and `World`, a world of fakes,
    and no network.
    """

    def run() -> Any:
        browser().go("about:blank")
        return browser().run(
            "(0, eval)(args[0]); (0, eval)(args[1]); " + script, CLIENT.read_text(), WORLD
        )

    return run


# The world as the client sees it: sockets and requests that a test answers, and a clock that moves
# when it says so.
WORLD = """
globalThis.World = class {
  constructor() {
    const world = this;
    Object.assign(this, { now: 0, timers: [], sockets: [], requests: [], log: [], luck: 1 });
    this.WebSocket = class {
      constructor(url) { this.url = url; world.sockets.push(this); }
      say(...envelopes) { for (const each of envelopes) this.onmessage({ data: JSON.stringify(each) }); }
      drop(code, reason = "") { this.onclose({ code, reason }); }
      close() { this.isClosed = true; }
    };
  }
  subscribe(more = {}) {
    const world = this;
    const subscription = new Asyncplumber("http://server.test", {
      account: "a/b", WebSocket: this.WebSocket, random: () => this.luck, clearTimeout: (id) => this.timers.splice(0, Infinity,
        ...this.timers.filter((timer) => timer.id !== id)),
      setTimeout(step, ms) { const id = {}; world.timers.push({ id, step, at: world.now + ms }); return id; },
      fetch: (url, options) => new Promise((resolve, reject) => {
        const answer = (body, headers = {}, status = 200) => resolve(new Response(body, { status, headers }));
        const stream = () => {
          let pipe;
          answer(new ReadableStream({ start: (controller) => { pipe = controller; } }), { "Content-Type": "text/event-stream" });
          return (text) => pipe.enqueue(new TextEncoder().encode(text));
        };
        options.signal.addEventListener("abort", () => reject(new Error("aborted")));
        this.requests.push({ url: String(url), ...options, answer, stream, fail: () => reject(new TypeError("no network")) });
      }), ...more });
    subscription.on("event", (event) => this.log.push(event.cursor));
    for (const name of ["gap", "close"]) subscription.on(name, (fact) => this.log.push([name, fact]));
    subscription.on("state", ({ state, retryIn }) => this.log.push(retryIn === undefined ? state : [state, retryIn]));
    return subscription;
  }
  /** Let what has been promised happen: a turn of the real event loop empties the queue of microtasks. */
  async settle() { for (let i = 0; i < 3; i++) await new Promise((resolve) => setTimeout(resolve)); }
  async advance(ms) {
    const end = this.now + ms;
    await this.settle();
    for (;;) {
      const next = this.timers.filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at)[0];
      if (!next) break;
      this.timers.splice(this.timers.indexOf(next), 1);
      this.now = next.at;
      next.step();
      await this.settle();
    }
    this.now = end;
  }
  get socket() { return this.sockets.at(-1); }
  get request() { return this.requests.at(-1); }
  taken() { return this.log.splice(0); }
};
World.open = (cursor) => ({ type: "plumber.open", account: "a/b", cursor, data: {} });
World.event = (cursor, type = "result") => ({ id: cursor, account: "a/b", cursor, type, data: 1 });
World.record = (envelope) => `id: ${envelope.cursor}\\nevent: ${envelope.type}\\ndata: ${JSON.stringify(envelope)}\\n\\n`;
"""
