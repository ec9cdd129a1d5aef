"""The pool of connections: what it uses of txmongo is there, and does what it relies on."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pymongo.errors import AutoReconnect
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase
from txmongo import connection
from txmongo import connection as driver
from txmongo.connection import ConnectionPool
from txmongo.errors import TimeExceeded
from txmongo.protocol import MongoProtocol

from asyncplumber.stores.mongo import pool
from asyncplumber.stores.mongo.pool import ConnectionChanged, Pool

# Everything of txmongo that the pool, and the link behind it, name.
NAMES = {"ConnectionPool", "TimeExceeded", "connection"}
METHODS = {  # each with the parameters that we give
    "authenticate": ["database", "username", "password", "mechanism"],
    "command": ["dbname", "command"],
    "disconnect": [],
    "getprotocol": [],
}
OPTIONS = {"uri", "pool_size", "ssl_context_factory", "ping_interval", "ping_timeout"}
MORE_OPTIONS = {"retry_delay", "max_delay", "codec_options"}  # taken by **kwargs


class TxmongoTests(SynchronousTestCase):
    """What is used, by name."""

    def test_the_list_is_complete(self) -> None:
        """The module imports these names and no other."""
        tree = ast.parse(Path(pool.__file__).read_text(encoding="utf-8"))
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("txmongo")
            for alias in node.names
        }
        self.assertEqual(imported, NAMES)

    def test_its_factories_are_quiet(self) -> None:
        """Those of its connections and of its pinger; a new version may call them otherwise."""
        factories = [
            each
            for each in vars(driver).values()
            if isinstance(each, type) and issubclass(each, Factory) and "txmongo" in each.__module__
        ]
        self.assertEqual([each.noisy for each in factories], [False, False])

    def test_the_methods_take_what_we_give(self) -> None:
        """The first parameters have these names; `command` takes a time limit."""
        for name, expected in METHODS.items():
            parameters = list(inspect.signature(getattr(ConnectionPool, name)).parameters)
            self.assertEqual(parameters[1 : len(expected) + 1], expected, name)
        self.assertIn("_deadline", inspect.signature(ConnectionPool.command).parameters)

    def test_the_constructor_takes_our_options(self) -> None:
        """Those by name, and those that it only reads if they are there."""
        parameters = inspect.signature(ConnectionPool.__init__).parameters
        self.assertEqual(OPTIONS - set(parameters), set())
        source = inspect.getsource(ConnectionPool.__init__)
        for name in MORE_OPTIONS:
            self.assertIn(f'"{name}"', source)

    def test_a_time_limit_and_a_lost_connection_are_told_apart(self) -> None:
        """By the types of the errors."""
        self.assertFalse(issubclass(TimeExceeded, AutoReconnect))
        self.assertIn("AutoReconnect", inspect.getsource(MongoProtocol.connectionLost))

    def test_a_connection_has_what_tls_asks_for(self) -> None:
        """Its factory has the connector, by which the host is known."""
        source = inspect.getsource(connection)
        self.assertIn("factory.connector = ", source)
        self.assertIn("connector.host, connector.port = ", source)


class _Protocol:
    """A connection that writes down what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send_msg(self, message: Any, *arguments: Any, **options: Any) -> Deferred[Any]:
        self.sent.append(message)
        return succeed({"ok": 1})


class GenerationTests(SynchronousTestCase):
    """A command by the expected connection only."""

    def setUp(self) -> None:
        self.waiting: Deferred[Any] = Deferred()
        self.patch(ConnectionPool, "getprotocol", lambda pool: self.waiting)
        with patch.object(ConnectionPool, "__init__", lambda self, *arguments, **options: None):
            self.pool = Pool(_address(), 1)
        self.patch(ConnectionPool, "command", self.command)

    @staticmethod
    def command(pool: Any, database: str, body: Any, timeout: float) -> Deferred[Any]:
        """Send as txmongo does: by what `getprotocol` returns, in the turn in which it fires."""
        answer: Deferred[Any] = pool.getprotocol()
        return answer.addCallback(lambda protocol: protocol.send_msg(body))

    def connected(self) -> _Protocol:
        """Get a new connection."""
        protocol = _Protocol()
        self.waiting = succeed(protocol)
        self.successResultOf(self.pool.getprotocol())
        self.waiting = succeed(protocol)
        return protocol

    def test_each_new_connection_is_a_generation(self) -> None:
        """And one that is used again is not."""
        protocol = self.connected()
        self.assertEqual(self.pool.generation, 1)
        self.successResultOf(self.pool.getprotocol())
        self.assertEqual(self.pool.generation, 1)
        self.connected()
        self.assertEqual((self.pool.generation, protocol.sent), (2, []))

    def test_a_command_is_sent_by_its_generation(self) -> None:
        """If the connection is still that one."""
        protocol = self.connected()
        self.successResultOf(self.pool.command_on(1, "db", {"ping": 1}, 1.0))
        self.assertEqual(protocol.sent, [{"ping": 1}])

    def test_a_command_is_not_sent_by_another_generation(self) -> None:
        """Although it waited for a connection, and got one."""
        self.connected()
        self.waiting = waiting = Deferred()
        answer = self.pool.command_on(1, "db", {"ping": 1}, 1.0)
        protocol = _Protocol()
        waiting.callback(protocol)
        self.failureResultOf(answer, ConnectionChanged)
        self.assertEqual(protocol.sent, [])

    def test_a_driver_that_sends_otherwise_is_noticed(self) -> None:
        """If it did not ask for a connection, nobody could say by which one it sends."""
        self.connected()
        self.patch(ConnectionPool, "command", lambda *arguments, **options: succeed({}))
        with self.assertRaises(AssertionError):
            self.pool.command_on(1, "db", {"ping": 1}, 1.0)


def _address() -> Any:
    from asyncplumber.stores.mongo.uri import parsed

    return parsed("mongodb://127.0.0.1/")
