"""
A hub as anyone would write it with Klein and Autobahn: what this project's own stack does without
further thought.
"""

from __future__ import annotations

import sys
from typing import Any

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from klein import Klein
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site

readers: dict[str, set[Reader]] = {}
app = Klein()


class Reader(WebSocketServerProtocol):
    """A WebSocket of one account."""

    account = ""

    def onConnect(self, request: Any) -> None:
        self.account = request.path.rsplit("/", 1)[1]

    def onOpen(self) -> None:
        readers.setdefault(self.account, set()).add(self)

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        readers.get(self.account, set()).discard(self)


@app.route("/hooks/<account>", methods=["POST"])
def post(request: Any, account: str) -> str:
    """Send the body to everyone."""
    body = request.content.read()
    for reader in list(readers.get(account, ())):
        reader.sendMessage(body)
    request.setResponseCode(201)
    return '{"status":"ok"}'


class Events(Resource):
    """All accounts have one resource: the protocol looks at the path."""

    def getChild(self, path: bytes, request: Any) -> Resource:
        return sockets  # type: ignore[return-value]


factory = WebSocketServerFactory()
factory.protocol = Reader
sockets = WebSocketResource(factory)
root = app.resource()


class Root(Resource):
    """Events by WebSocket, everything else by Klein."""

    def getChild(self, path: bytes, request: Any) -> Resource:
        if path == b"events":
            return Events()
        request.prepath.pop()
        request.postpath.insert(0, path)
        return root


Root.isLeaf = False
reactor.listenTCP(int(sys.argv[1]), Site(Root()), backlog=4096, interface="127.0.0.1")  # type: ignore[arg-type]
reactor.run()
