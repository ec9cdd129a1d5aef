"""What the admin page shows: instances, accounts, hooks and refusals of the whole cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast
from urllib.parse import parse_qs, quote, urlencode

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.signatures import PeerSigner, question_target
from asyncplumber.errors import Unavailable
from asyncplumber.event import Instance
from asyncplumber.http.cluster import Cluster
from asyncplumber.http.instance_status import BUSIEST, AccountQuery
from asyncplumber.http.refusals import KEPT
from asyncplumber.interfaces import LEASE
from asyncplumber.plumber import Plumber
from asyncplumber.relays.questions import Questions
from asyncplumber.stores.memory import MemoryStore
from asyncplumber.stores.retention import Retention
from asyncplumber.testing import MemoryServer
from tests.unit.test_ports import Port, PortServer

SECRET = b"sixteen bytes or more"


def signed(target: str, now: float) -> list[tuple[str, str]]:
    """Return the headers that sign a question."""
    headers: Any = PeerSigner(SECRET).sign(target, now, b"").result
    return [(name.decode(), value.decode()) for name, value in headers.items()]


LONE_SURROGATE = "WyJcdWQ4MDAiLCAiYSIsICJiIl0="  # in the place of an account


class Peers:
    """Brings questions to the servers in memory, signed as over HTTP."""

    def __init__(self, servers: Iterable[MemoryServer]) -> None:
        self.servers = {server.plumber.status().instance_id: server for server in servers}
        self.asked: list[str] = []

    async def ask(self, instances: Iterable[Instance], path: str) -> list[Any]:
        found = []
        for instance in instances:
            self.asked.append(instance.id)
            server = self.servers.get(instance.id)
            found.append(None if server is None else self._answer(server, instance.id, path))
        return found

    def _answer(self, server: MemoryServer, id: str, path: str) -> Any:
        words = signed(question_target(id, path), server.clock.seconds())
        reply = server.request("GET", f"/instances/{id}{path}", words)
        return json.loads(reply.body) if reply.status == 200 else None


class ClusterCase(SynchronousTestCase):
    """Two instances on one store, and what the first one shows."""

    def setUp(self) -> None:
        first = PortServer(store=self.make_store, plumber={"secret": SECRET})
        self.clock = first.clock
        options: Any = {"store": self.store, "clock": self.clock, "plumber": {"secret": SECRET}}
        second = MemoryServer(**options)
        self.servers = [first, second]
        self.ids = [server.plumber.status().instance_id for server in self.servers]
        self.peers = Peers(self.servers)
        self.plumber = first.plumber
        self.pages = self.plumber.front._routes._operators
        self.pages._cluster._questions = cast(Questions, self.peers)
        self.settle()

    def make_store(self, clock: Any) -> MemoryStore:
        self.store = MemoryStore(Retention(), clock, shared=True)
        return self.store

    def settle(self) -> None:
        for server in self.servers:
            server.settle()

    def get(self, name: str, **query: str) -> Any:
        """Return the document of this name."""
        parsed = parse_qs(urlencode(query), keep_blank_values=True)
        reply = self.successResultOf(self.pages.get(name, parsed))
        self.assertEqual(reply.status, 200)
        return json.loads(reply.body)

    def post(self, account: str) -> None:
        """Have an event stored by the first instance; the other one cannot be reached by HTTP."""
        client = self.servers[0].connect()
        head = f"POST /hooks/{account} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1"
        client.send(f"{head}\r\n\r\n1".encode())
        self.servers[0].advance(1.5)
        self.assertRegex(client.received(), b"HTTP/1.1 20[12] ")

    def subscribe(self, server: int, *accounts: str) -> None:
        """Have one subscriber more for each of these accounts."""
        for account in accounts:
            client = self.servers[server].connect()
            target = f"/events/{quote(account, safe='')}"
            client.send(
                f"GET {target} HTTP/1.1\r\nHost: localhost\r\n"
                "Accept: text/event-stream\r\n\r\n".encode()
            )
        self.settle()


class OverviewTests(ClusterCase):
    """The instances."""

    def test_each_instance_has_its_lease_and_figures(self) -> None:
        """From whichever one the page is loaded."""
        self.subscribe(0, "a", "a")
        self.subscribe(1, "a", "b")
        self.post("a")
        overview = self.get("cluster")
        self.assertEqual(overview["here"], self.ids[0])
        self.assertIsNone(overview["store"])
        found = {each["id"]: each for each in overview["instances"]}
        self.assertEqual(sorted(found), sorted(self.ids))
        first, second = (found[id] for id in self.ids)
        self.assertEqual((first["hooks"], second["hooks"]), (1, 2))
        for each in (first, second):
            self.assertTrue(0 < each["expires_in"] <= LEASE)
            self.assertEqual(each["status"]["figures"]["subscribers"], 2)
            self.assertEqual(each["status"]["state"], "running")
        self.assertEqual(first["status"]["figures"]["events_accepted_total"], 1)
        self.assertEqual((first["status"]["account_count"], first["status"]["accounts"]), (1, []))

    def test_an_instance_that_does_not_answer_is_shown(self) -> None:
        """With its lease and its hooks, and without a status; one without a lease is not asked."""
        del self.peers.servers[self.ids[1]]
        registry = self.store.registry
        silent = self.successResultOf(registry.add_instance(Instance("silent", "http://x/silent")))
        self.successResultOf(registry.register(silent, ["a"]))
        found = {each["id"]: each for each in self.get("cluster")["instances"]}
        self.assertIsNone(found[self.ids[1]]["status"])
        self.assertEqual((found["silent"]["hooks"], found["silent"]["status"]), (1, None))
        self.assertIsNotNone(found[self.ids[0]]["status"])
        registry._rows["silent"] = registry._rows["silent"][0], self.clock.seconds() - 1
        self.peers.asked.clear()
        found = {each["id"]: each for each in self.get("cluster")["instances"]}
        self.assertEqual(found["silent"]["expires_in"], -1)
        self.assertEqual(self.peers.asked, [self.ids[1]])

    def test_an_answer_of_another_version_counts_as_none(self) -> None:
        """It does not break the page."""
        for odd in ([], {}, {"id": self.ids[1]}, {"id": "x", "accounts": []}, "x", 7):
            self.peers._answer = lambda *_, odd=odd: odd  # type: ignore[method-assign, misc]
            found = {each["id"]: each for each in self.get("cluster")["instances"]}
            self.assertIsNone(found[self.ids[1]]["status"])
            self.assertEqual(self.get("accounts")["silent"], [self.ids[1]])

    def test_while_the_store_is_away_this_instance_is_shown(self) -> None:
        """And what the store says."""
        server = MemoryServer(plumber={"secret": SECRET})
        own = server.plumber.front._routes._operators.own

        class Away:
            def members(self) -> Any:
                return Deferred.fromCoroutine(self._fail())

            async def _fail(self) -> Any:
                raise Unavailable

            def heads(self, accounts: Any) -> Any:
                return self.members()

        away: Any = Away()
        cluster = Cluster(own, away, away, cast(Questions, self.peers))
        overview = self.successResultOf(Deferred.fromCoroutine(cluster.overview()))
        self.assertIn("not possible", overview["store"])
        self.assertEqual([each["expires_in"] for each in overview["instances"]], [None])
        server.plumber.register("a", print)
        server.settle()
        found = self.successResultOf(Deferred.fromCoroutine(cluster.accounts(AccountQuery(""))))
        self.assertEqual([each["account"] for each in found["accounts"]], ["a"])

    def test_an_instance_alone_shows_itself(self) -> None:
        """No other process can use its store."""
        server = PortServer()
        server.port = Port.PRIVATE
        overview = json.loads(server.request("GET", "/admin/cluster").body)
        (instance,) = overview["instances"]
        self.assertEqual(instance["status"]["worker"], None)
        self.assertFalse(overview["shared"])
        self.assertEqual(json.loads(server.request("GET", "/admin/hooks").body)["hooks"], [])

    def test_a_status_is_bounded(self) -> None:
        """It has the accounts with the most subscribers."""
        names = [f"account {n:02}" for n in range(BUSIEST + 5)]
        self.subscribe(0, *names, names[7], names[7], names[9])
        status = self.pages.own.document()
        self.assertEqual(status["account_count"], BUSIEST + 5)
        accounts = [each["account"] for each in status["accounts"]]
        self.assertEqual((len(accounts), accounts[:2]), (BUSIEST, [names[7], names[9]]))


class AccountTests(ClusterCase):
    """The accounts."""

    def names(self, **query: str) -> list[str]:
        return [each["account"] for each in self.get("accounts", **query)["accounts"]]

    def test_subscribers_and_positions_of_all_instances(self) -> None:
        """And how far the history reaches."""
        self.subscribe(0, "a", "a")
        self.subscribe(1, "a")
        self.post("a")
        (account,) = self.get("accounts")["accounts"]
        self.assertEqual(account["subscribers"], 3)
        self.assertTrue(account["head"].endswith(".1"))
        places = {each["instance"]: each["subscribers"] for each in account["instances"]}
        self.assertEqual(places, {self.ids[0]: 2, self.ids[1]: 1})

    def test_pages_have_each_account_once(self) -> None:
        """In the order of the names, whichever instance has them."""
        names = [f"{n:02}" for n in range(20)]
        self.subscribe(0, *names[::2], *names[::5])
        self.subscribe(1, *names[1::2], *names[::3])
        for limit in (1, 3, 7, 20, 50):
            found: list[str] = []
            after: str | None = ""
            while after is not None:
                page = self.get("accounts", after=after, limit=str(limit))
                self.assertLessEqual(len(page["accounts"]), limit)
                found += [each["account"] for each in page["accounts"]]
                after = page["next"]
            self.assertEqual(found, names)

    def test_a_search_finds_a_part_of_the_name(self) -> None:
        """Any text, also one that is special in a URL."""
        self.subscribe(0, "team-1", "other")
        self.subscribe(1, "my team", "a&b=%ä")
        self.assertEqual(self.names(search="team"), ["my team", "team-1"])
        self.assertEqual(self.names(search="&b=%ä"), ["a&b=%ä"])
        self.assertEqual(self.names(search="nobody"), [])

    def test_an_account_that_nobody_reads_is_found_by_its_name(self) -> None:
        """If it has had an event; one that never had any does not exist, and gets no row."""
        self.post("stored")
        (account,) = self.get("accounts", search="stored")["accounts"]
        self.assertEqual((account["subscribers"], account["instances"]), (0, []))
        self.assertTrue(account["head"].endswith(".1"))
        for search in ("never", "", "x" * 300, "\0"):
            self.assertEqual(self.names(search=search), [])
        self.assertEqual(self.store.history.accounts, ["stored"])

    def test_a_wrong_page_is_refused(self) -> None:
        """A limit that is none, or too large, and a place that was never given."""
        server = PortServer()
        server.port = Port.PRIVATE
        for query in ("limit=0", "limit=201", "limit=x", "limit=-1", "limit=%D9%A1", "limit="):
            for name in ("accounts", "hooks"):
                if (name, query) != ("hooks", "limit=201"):
                    reply = server.request("GET", f"/admin/{name}?{query}")
                    self.assertEqual(reply.status, 400, query)
        self.assertEqual(server.request("GET", "/admin/hooks?limit=500").status, 200)
        self.assertEqual(server.request("GET", "/admin/hooks?limit=501").status, 400)
        self.assertEqual(server.request("GET", "/admin/accounts?limit=200").status, 200)
        for after in ("x", "W10=", "WzEsMiwzXQ==", "=", "%00", quote("[" * 5000), LONE_SURROGATE):
            reply = server.request("GET", f"/admin/hooks?after={after}")
            self.assertEqual(reply.status, 400, after)
        self.assertEqual(server.request("GET", "/admin/nothing").status, 404)
        self.assertEqual(server.request("POST", "/admin/cluster").status, 405)


class HookTests(ClusterCase):
    """The hooks in the registry."""

    def test_hooks_come_by_pages(self) -> None:
        """Of all instances or of one, with a prefix or without."""
        self.subscribe(0, "a", "b")
        self.subscribe(1, "b", "c")
        found, after = [], ""
        while after is not None:
            page = self.get("hooks", limit="2", after=after)
            found += [(each["account"], each["instance"]) for each in page["hooks"]]
            after = page["next"]
        first, second = self.ids
        expected = [("a", first), *sorted([("b", first), ("b", second)]), ("c", second)]
        self.assertEqual(found, expected)
        page = self.get("hooks", instance=second, prefix="c")["hooks"]
        self.assertEqual([each["account"] for each in page], ["c"])
        self.assertTrue(page[0]["url"].endswith(f"/instances/{second}/hooks/c"))


class RefusalTests(ClusterCase):
    """The requests that were refused."""

    def test_refusals_of_all_instances_are_shown(self) -> None:
        """The newest first, without what may be secret."""
        secret = "s3cret-t0ken"
        self.servers[1].request("GET", f"//odd?token={secret}", [("Authorization", secret)])
        self.clock.advance(1)
        self.servers[0].request("POST", "/hooks/a", [("Origin", "https://evil.example")], b"x")
        first, second = self.get("cluster")["refusals"]
        self.assertEqual(
            (first["status"], first["method"], first["path"]), (403, "POST", "/hooks/a")
        )
        self.assertEqual((first["instance"], first["address"]), (self.ids[0], "127.0.0.1"))
        self.assertEqual((second["status"], second["path"]), (404, "//odd"))
        self.assertEqual(second["instance"], self.ids[1])
        self.assertNotIn(secret, json.dumps([first, second]))

    def test_only_the_last_are_kept(self) -> None:
        """Of each instance, and of all together; a long path is cut."""
        for number in range(KEPT + 5):
            for server in self.servers:
                server.request("GET", f"//{number}/{'x' * 1000}")
        refusals = self.get("cluster")["refusals"]
        self.assertEqual(len(refusals), KEPT)
        self.assertLess(max(len(each["path"]) for each in refusals), 210)


class PeerTests(ClusterCase):
    """What an instance tells another one."""

    def test_only_an_instance_may_ask(self) -> None:
        """The signature holds for this instance and this question."""
        id = self.ids[0]
        server = self.servers[0]

        def ask(path: str, question: str, to: str = id) -> int:
            words = signed(question_target(id, question), self.clock.seconds())
            return server.request("GET", f"/instances/{to}{path}", words).status

        self.assertEqual(ask("/status", "/status"), 200)
        self.assertEqual(ask("/status?limit=5", "/status?limit=5"), 200)
        self.assertEqual(ask("/status?limit=5", "/status?limit=6"), 403)
        self.assertEqual(ask("/status", "/accounts/a"), 403)
        self.assertEqual(ask("/status", "/status", "another"), 410)
        self.assertEqual(ask("/status?limit=9999", "/status?limit=9999"), 400)
        self.assertEqual(server.request("GET", f"/instances/{id}/status").status, 403)

    def test_a_query_is_read_as_it_was_written(self) -> None:
        """Whatever is searched for."""
        for query in (
            AccountQuery(),
            AccountQuery("", "", 5),
            AccountQuery(limit=0),
            AccountQuery("a&b=c d+%ä\n", "é/?", 200),
        ):
            parsed = parse_qs(query.text, keep_blank_values=True)
            self.assertEqual(AccountQuery.parse(parsed), query)

    def test_a_worker_tells_its_number(self) -> None:
        """So that an operator finds its process."""
        plumber: Plumber = self.servers[0].plumber
        plumber.worker = 3
        self.assertEqual(plumber.front._routes._operators.own.document()["worker"], 3)
