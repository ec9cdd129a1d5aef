"""What ``twistd asyncplumber`` starts."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.endpoints import serverFromString

from asyncplumber.auth.build import build_authority
from asyncplumber.clocks import WallClock, steady
from asyncplumber.core.tasks.settings import TaskSettings
from asyncplumber.http.clients import ClientPolicy
from asyncplumber.http.ports import Port
from asyncplumber.interfaces import IStarter
from asyncplumber.option_list import PREFIX
from asyncplumber.options import Options
from asyncplumber.plumber import Plumber
from asyncplumber.server import signals
from asyncplumber.server.insecure import InsecureWarning
from asyncplumber.server.logs import LoggedService, configure_twist, observer_for_twistd
from asyncplumber.server.service import Place, Server
from asyncplumber.server.worker import make_worker
from asyncplumber.server.workers import Supervisor
from asyncplumber.starters import open_starter
from asyncplumber.starters.secrets import parse_starter_secrets
from asyncplumber.stores.retention import Retention

__all__ = ["Options", "makeService"]


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    Make the service that twistd starts: one server, one worker, or the parent of several workers.

    It also decides how the process logs.

    Args:
        options: The parsed options.
        reactor: The reactor to run on.  None is the global one.

    Raises:
        SystemExit: The store cannot be used, for a reason that only shows now.
    """
    if reactor is None:
        from twisted.internet import reactor
    steady(reactor)
    observer = None
    parent = getattr(options, "parent", None)
    log_format, level = options["log-format"], options["log-level"]
    if parent is not None and "fileLogObserverFactory" in parent:
        configure_twist(parent, log_format, level)
    elif parent is not None:
        observer = observer_for_twistd(parent, log_format, level, reactor)
    return LoggedService(_service(options, reactor), observer)


def _service(options: Options, reactor: Any) -> IService:
    signals.handle(reactor)
    place = os.environ.get(PREFIX + "WORKER", "")
    if place:
        peers = (options["peer-host"], options["peer-port"])
        return make_worker(place, _plumber(options, reactor), peers, reactor, **options.limits())
    server = _serve(options, reactor)
    if not options["insecure"]:
        return server
    services = MultiService()
    for service in (InsecureWarning(reactor), server):
        service.setServiceParent(services)
    return services


def _serve(options: Options, reactor: Any) -> IService:
    name = options["listen"]
    endpoint = serverFromString(reactor, name)
    private = _private(options, reactor)
    if options["workers"] > 1:
        environ = options.environment()
        return Supervisor(options["workers"], endpoint, name, environ, reactor, private)
    public = Place(endpoint, name, Port.PUBLIC if private is not None else Port.ONLY)
    places = [public, private] if private is not None else [public]
    return Server(_plumber(options, reactor), places, reactor, **options.limits())


def _private(options: Options, reactor: Any) -> Place | None:
    name = options["private-listen"]
    return Place(serverFromString(reactor, name), name, Port.PRIVATE) if name else None


def _starter(options: Options, reactor: Any) -> IStarter | None:
    if options["starter"] is None:
        return None
    secrets = options.starter_secrets
    try:
        return open_starter(
            options["starter"],
            reactor,
            WallClock.seconds,
            secrets=parse_starter_secrets(secrets.text) if secrets is not None else (),
            timeout=options["starter-timeout"],
            answer_limit=options["max-body"],
        )
    except ValueError as error:
        raise SystemExit(f"asyncplumber: --starter: {error}") from None


def _plumber(options: Options, reactor: Any) -> Plumber:
    insecure = bool(options["insecure"])
    starter = _starter(options, reactor)
    try:
        return Plumber(
            options["store"],
            options["advertise-url"],
            retention=Retention(
                options["history-length"], options["history-age"], options["history-bytes"]
            ),
            lease=options["lease"],
            secret=options["peer-secret"].encode() or None,
            linger=options["linger"],
            subscriber_limit=options["max-subscribers"],
            body_limit=options["max-body"],
            unsent_limit=options["max-unsent"],
            origins=options["allow-origin"],
            hosts=(*options["host"], *options.configured.config.hosts),
            authority=build_authority(
                options.sources, reactor, WallClock.seconds, options.configured
            ),
            page=bool(options["page"]),
            client_policy=ClientPolicy(
                options.configured.config.limits, options["trusted-proxies"], insecure
            ),
            peer_networks=options["peer-networks"],
            log_requests=bool(options["log-requests"]),
            starter=starter,
            task_settings=TaskSettings(
                start_deadline=options["start-deadline"],
                patience=options["task-deadline"],
                progress_interval=options["progress-interval"],
                age=options["task-age"],
                hold=options["hold"],
                callback_rate=options["callback-rate"],
            ),
            public_url=options["public-url"],
            reactor=reactor,
        )
    except ValueError as error:
        raise SystemExit(f"asyncplumber: --store: {error}") from None
