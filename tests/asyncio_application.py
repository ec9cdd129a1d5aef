"""
An application on the asyncio reactor: Tornado's WebSockets, fed by `Plumber.register`.

`tests.system.test_callbacks` runs it.  It writes facts as lines of JSON, and ends by itself.
"""

from __future__ import annotations

import asyncio
import json
import sys

from twisted.internet import asyncioreactor

asyncioreactor.install(asyncio.new_event_loop())

from tornado.httpserver import HTTPServer  # the reactor comes first
from tornado.testing import bind_unused_port
from tornado.web import Application
from tornado.websocket import WebSocketHandler, websocket_connect
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater

from asyncplumber import Event, Plumber

plumber = Plumber("memory:")


def say(*facts: object) -> None:
    """Write a line for the test."""
    print(json.dumps(facts), flush=True)


class Pipe(WebSocketHandler):
    """A subscriber's WebSocket, whose `write_message` returns a future of asyncio."""

    def open(self) -> None:
        plumber.register("a", self.arrived, after="earliest")

    def arrived(self, event: Event) -> object:
        return self.write_message(json.dumps(event.data))

    def on_close(self) -> None:
        plumber.unregister("a", self.arrived)


async def both(event: Event) -> None:
    """Await what needs a task of asyncio, and a Deferred."""
    async with asyncio.timeout(10):
        await asyncio.sleep(0.001)
    say("both", event.data, await deferLater(reactor, 0.001, lambda: "deferred"))
    if event.data == 2:
        await deferLater(reactor, 0.001, lambda: 1 // 0)
    if event.data == 3:
        asyncio.current_task().cancel()
        await asyncio.sleep(10)
    if event.data == 4:
        complete.callback(None)


complete: Deferred[None] = Deferred()


async def main() -> None:
    """Send, and read at the other end."""
    socket, port = bind_unused_port()
    server = HTTPServer(Application([("/pipe", Pipe)]))
    server.add_socket(socket)
    plumber.startService()
    await plumber.when_running()
    client = await Deferred.fromFuture(
        asyncio.ensure_future(websocket_connect(f"ws://127.0.0.1:{port}/pipe"))
    )
    plumber.register("a", both)
    plumber.register("a", cancelled)
    for number in (1, 2, 3, 4):
        await plumber.send("a", number)
    for _ in range(4):
        say(
            "tornado",
            json.loads(await Deferred.fromFuture(asyncio.ensure_future(client.read_message()))),  # type: ignore[arg-type]
        )
    await complete
    plumber.unregister("a", both)
    plumber.unregister("a", cancelled)
    # A client that does not read: what is written waits, and so do the events behind it.
    large = [str(number) * 100_000 for number in range(100)]
    for text in large:
        await plumber.send("a", text)
    read = [await Deferred.fromFuture(asyncio.ensure_future(client.read_message())) for _ in large]
    say("all", [json.loads(text) for text in read] == large)  # type: ignore[arg-type]
    client.close()
    server.stop()
    await plumber.stopService()


def cancelled(event: Event) -> object:
    """Await a future that is cancelled."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    say("cancelled", event.data)
    return future


def end(failure: object) -> None:
    """Write the outcome."""
    if failure is not None:
        say("failed", str(failure))
    reactor.stop()


reactor.callLater(0, lambda: ensureDeferred(main()).addBoth(end))  # in the loop, and not before it
reactor.run()
sys.exit()
