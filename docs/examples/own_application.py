"""
A Twisted application with a plumber inside.  Run it with ``twistd -ny own_application.py``.

It shows the last result of each account at ``/latest``.  Tasks post to
``/plumber/hooks/{account}``, on this instance or on any other one with the same store, and browsers
subscribe at ``/plumber/events/{account}``.  ``Latest.arrived`` is called in all instances.
"""

import json
import os

from twisted.application import service, strports
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site

from asyncplumber import Event, Plumber, steady


class Latest(Resource):
    """The last result of each account that is watched."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, object] = {}

    def arrived(self, event: Event) -> None:
        self.results[event.account] = event.data

    def render_GET(self, request) -> bytes:  # type: ignore[no-untyped-def]
        request.setHeader(b"Content-Type", b"application/json")
        return json.dumps(self.results).encode()


steady(reactor)  # so that no timer stops when somebody sets the clock back
port = os.environ.get("PORT", "8000")
plumber = Plumber(
    os.environ.get("STORE", "sqlite:own_application.sqlite"), f"http://127.0.0.1:{port}/plumber"
)
latest = Latest()
for account in ("41", "42"):
    plumber.register(account, latest.arrived)

root = Resource()
root.putChild(b"plumber", plumber.resource())
root.putChild(b"latest", latest)

application = service.Application("own_application")
plumber.setServiceParent(application)
strports.service(f"tcp:{port}:interface=127.0.0.1", Site(root)).setServiceParent(application)
