"""A plumber inside a site of another application, in memory."""

from __future__ import annotations

from typing import Any

from klein import Klein
from twisted.web.resource import IResource, Resource
from twisted.web.server import Site

from asyncplumber.testing import MemoryClient, MemoryServer


def twisted_site(resource: IResource, clock: Any) -> Site:
    """Return a ``twisted.web`` site that has the resource at ``/plumber``."""
    root = Resource()
    root.putChild(b"plumber", resource)
    return quiet(Site(root, reactor=clock))


def klein_site(resource: IResource, clock: Any) -> Site:
    """Return a Klein site that has the resource at ``/plumber``."""
    app = Klein()

    @app.route("/plumber/", branch=True)
    def plumber(request: Any) -> IResource:
        return resource

    return quiet(Site(app.resource(), reactor=clock))


def nested_site(resource: IResource, clock: Any) -> Site:
    """Return a site with a Klein application at ``/app``, which has ours at ``/a/b/plumber``."""
    app = Klein()

    @app.route("/a/b/plumber/", branch=True)
    def plumber(request: Any) -> IResource:
        return resource

    root = Resource()
    root.putChild(b"app", app.resource())
    return quiet(Site(root, reactor=clock))


def quiet(site: Site) -> Site:
    """Return the site without its access log."""
    site.log = lambda request: None  # type: ignore[method-assign]
    return site


class MountedServer(MemoryServer):
    """A `MemoryServer` whose clients come in through a ``twisted.web`` site, at its root."""

    def __init__(self, **options: Any) -> None:
        """Take the arguments of `MemoryServer`."""
        super().__init__(**options)
        self.site = quiet(Site(self.plumber.resource(), reactor=self.clock))

    def connect(self) -> MemoryClient:
        """Return a client of the site."""
        return self.connect_to(self.site)

    def connect_to(self, site: Site) -> MemoryClient:
        """Return a client of another site."""
        protocol: Any = site.buildProtocol(self.client_address)
        client = MemoryClient(self, protocol)
        protocol.makeConnection(client)
        return client
