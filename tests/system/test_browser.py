"""
The browser's side in a real Chromium: the client in a world of fakes, then the page with a real
server.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from twisted.trial.unittest import SynchronousTestCase

from harness.browser import CLIENT, Browser, NoWebSockets, browser, in_fake_world, missing
from harness.processes import Process, Server, start_server

# A site of another application, with a plumber below a path.
MOUNTED = """
import sys
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site
from asyncplumber import Plumber

root = Resource()
plumber = Plumber()
root.putChild(b"pipes", plumber.resource())
plumber.startService()
port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")
print(f"port {port.getHost().port}", flush=True)
reactor.run()
"""
WORLD = "const world = new World(), { open, event, record } = World; "


class ClientTests(SynchronousTestCase):
    """asyncplumber.js with fake sockets, requests, clock and luck."""

    skip = missing()

    def js(self, script: str) -> Any:
        return in_fake_world(WORLD + script)()

    def test_an_event_stream_may_be_cut_anywhere(self) -> None:
        """
        The parser follows the standard on every kind of line, wherever the network cuts the text.
        """
        text = ": hello\r\nid: e.1\r\nevent: a\r\ndata: x\r\ndata:  y\r\n\r\nid:bad\0\rdata\r\revent: lost\n\nretry: 9\ndata: ü"
        text += "\n\ndata: cut"
        whole, *cuts = self.js(f"""
            const text = {json.dumps(text)};
            const read = (...pieces) => {{
              const got = [];
              const parse = Asyncplumber.sseParser((record) => got.push(record));
              pieces.forEach(parse);
              return got;
            }};
            return [read(text), read(...text), ...[...text].map((_, at) => read(text.slice(0, at), "", text.slice(at)))];
        """)
        first = {"type": "a", "data": "x\n y", "id": "e.1"}
        self.assertEqual(
            whole, [first, *({"type": "message", "data": data, "id": "e.1"} for data in ["", "ü"])]
        )
        self.assertGreater(len(cuts), 90)
        self.assertTrue(all(cut == whole for cut in cuts))

    def test_cursors_are_compared_by_number_within_an_epoch(self) -> None:
        """
        10 comes after 9, even where a Number could not tell, and anything comes after another
        epoch.
        """
        pairs: list[tuple[str, str | None]] = [
            ("e.10", "e.9"),
            ("e.9", "e.10"),
            ("e.9", "e.9"),
            ("e.9007199254740993", "e.9007199254740992"),
        ]
        pairs += [("f.1", "e.9"), ("e.1", "earliest"), ("e.1", None)]
        answer = self.js(
            f"return {json.dumps(pairs)}.map(([one, other]) => Asyncplumber.isAfter(one, other))"
        )
        self.assertEqual(answer, [True, False, False, True, True, True, True])

    def test_which_ends_are_final(self) -> None:
        """The documented rule: what would be answered the same again is not tried again."""
        final = self.js("""
            const codes = [1000, 1001, 1002, 1003, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 4000, 4401, 4403, 4408, 4429, 4500];
            const all = [400, 401, 403, 404, 408, 410, 425, 429, 500, 502, 503];
            const { isFinal } = Asyncplumber;
            return [codes.filter((code) => isFinal({ code })), all.filter((status) => isFinal({ status }))];
        """)
        self.assertEqual(
            final, [[1002, 1003, 1007, 1008, 1009, 4401, 4403], [400, 401, 403, 404, 410]]
        )

    def test_each_event_comes_once_across_a_reconnect(self) -> None:
        """
        It asks for what follows the last cursor, and drops what it has had; one bad handler costs
        nobody an event.
        """
        urls, log = self.js("""
            globalThis.reportError = () => {};
            const subscription = world.subscribe({ transports: ["websocket"] });
            subscription.on("event", () => { throw new Error("a bug of the page"); });
            subscription.on("event:progress", ({ cursor }) => world.log.push("progress " + cursor));
            await world.settle();
            const unknown = { type: "plumber.new", cursor: "e.99", data: {} };
            world.socket.say(open("e.4"), event("e.5"), unknown, event("e.6", "progress"));
            world.socket.drop(1006);
            await world.advance(500);
            world.socket.say(open("e.6"), event("e.6"), event("e.7"));
            return [world.sockets.map((socket) => socket.url), world.taken()];
        """)
        self.assertEqual(
            urls, ["ws://server.test/events/a%2Fb", "ws://server.test/events/a%2Fb?after=e.6"]
        )
        down = [["waiting", 500], "connecting", "open"]
        self.assertEqual(log, ["connecting", "open", "e.5", "e.6", "progress e.6", *down, "e.7"])

    def test_waits_grow_and_are_random_until_a_connection_lasts(self) -> None:
        """
        Full jitter below 0.5 s, 1 s, 2 s … 30 s; a connection that drops at once does not start
        that anew.
        """
        waits = self.js("""
            const waits = [];
            const subscription = world.subscribe({ transports: ["websocket"] });
            subscription.on("state", ({ state, retryIn }) => state === "waiting" && waits.push(retryIn));
            await world.settle();
            for (let i = 0; i < 8; i++) {
              world.socket.say(open("e.1"));
              world.socket.drop(1006);
              await world.advance(waits.at(-1));
            }
            world.luck = 0.25;
            world.socket.drop(1006);
            await world.advance(waits.at(-1));
            world.socket.say(open("e.1"));
            await world.advance(5000);
            world.socket.drop(1006);
            return waits;
        """)
        self.assertEqual(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 7500, 125])

    def test_a_planned_close_says_when_to_come_back(self) -> None:
        """The wish of plumber.bye is kept, with a random time on top."""
        log = self.js("""
            world.subscribe({ transports: ["websocket"] });
            await world.settle();
            world.socket.say(open("e.1"), { type: "plumber.bye", cursor: "e.1", data: { reconnect_after: 3 } });
            world.socket.drop(1012);
            return world.taken();
        """)
        self.assertEqual(log, ["connecting", "open", ["waiting", 3500]])

    def test_after_a_planned_close_waits_stay_short(self) -> None:
        """
        Below 1 s eight times, as the server comes back soon; then they grow on, as after any other
        end.
        """
        waits = self.js("""
            const waits = [];
            const subscription = world.subscribe({ transports: ["websocket", "sse"] });
            subscription.on("state", ({ state, retryIn }) => state === "waiting" && waits.push(retryIn));
            await world.settle();
            world.socket.say(open("e.1"), { type: "plumber.bye", cursor: null, data: { reconnect_after: 3 } });
            world.socket.drop(1001);
            for (let i = 0; i < 9; i++) {
              await world.advance(waits.at(-1));
              world.socket.drop(1006);
              await world.settle();
              world.request.fail();
              await world.settle();
            }
            return waits;
        """)
        self.assertEqual(waits, [3500, *[1000] * 7, 30000, 30000])

    def test_a_gap_is_told_and_moves_the_cursor(self) -> None:
        """After a gap the numbering of the notice counts, even if it is another epoch."""
        log, cursor = self.js("""
            const subscription = world.subscribe({ transports: ["websocket"], after: "e.90" });
            await world.settle();
            const data = { from: "e.90", to: "f.3", oldest: "f.1" };
            world.socket.say(open("f.3"), { type: "plumber.gap", cursor: "f.3", data }, event("f.3"), event("f.4"));
            return [world.taken(), subscription.cursor];
        """)
        gap = {"from": "e.90", "to": "f.3", "oldest": "f.1"}
        self.assertEqual((log, cursor), (["connecting", "open", ["gap", gap], "f.4"], "f.4"))

    def test_an_overloaded_server_is_left_alone_as_long_as_it_asks(self) -> None:
        """503 is no reason to give up, and its Retry-After is kept; 404 is one."""
        log = self.js("""
            world.subscribe({ transports: ["sse"] });
            await world.settle();
            world.request.answer("", { "Retry-After": "7" }, 503);
            await world.advance(7500);
            world.request.fail();
            await world.advance(1000);
            world.request.answer("", {}, 404);
            await world.advance(60000);
            return [world.taken(), world.requests.length];
        """)
        end = ["close", {"code": None, "status": 404, "reason": "HTTP 404"}]
        waits = [
            "connecting",
            ["waiting", 7500],
            "connecting",
            ["waiting", 1000],
            "connecting",
            "closed",
            end,
        ]
        self.assertEqual(log, [waits, 3])

    def test_a_silent_stream_is_given_up(self) -> None:
        """Comments keep an event stream alive; 45 seconds without one mean that it is dead."""
        logs = self.js("""
            world.subscribe({ transports: ["sse"] });
            await world.settle();
            const say = world.request.stream();
            say(record(open("e.1")));
            for (let i = 0; i < 4; i++) {
              await world.advance(40000);
              say(": heartbeat\\n\\n");
            }
            await world.advance(44999);
            const alive = world.taken();
            await world.advance(1);
            return [alive, world.taken(), world.request.signal.aborted];
        """)
        self.assertEqual(logs, [["connecting", "open"], [["waiting", 500]], True])

    def test_what_does_not_get_through_gives_way_to_the_next(self) -> None:
        """
        Refused WebSockets lead to SSE, a stream that is held back leads to long-polling; a dead
        network to neither.
        """
        log = self.js("""
            const subscription = world.subscribe();
            await world.settle();
            world.socket.drop(1006);
            await world.settle();
            world.request.fail();
            await world.advance(500);
            world.socket.drop(1006);
            await world.advance(10000);
            const seen = [world.requests.map(({ url }) => url.split("?")[1] ?? null), world.taken()];
            world.request.answer(JSON.stringify({ events: [], cursor: "e.9" }));
            await world.settle();
            return [...seen, subscription.transport, world.request.url.split("?")[1]];
        """)
        states = [
            "connecting",
            "connecting",
            ["waiting", 500],
            "connecting",
            "connecting",
            "connecting",
        ]
        self.assertEqual(log, [[None, None, "wait=0"], states, "longpoll", "wait=25&after=e.9"])

    def test_when_a_way_is_blocked_the_best_is_the_next_to_try(self) -> None:
        """
        A way that worked and does so no more is not clung to: another network may take a WebSocket.
        """
        transports = self.js("""
            const transports = [];
            const subscription = world.subscribe();
            subscription.on("state", ({ state, transport }) => transports.push(`${state} ${transport}`));
            await world.settle();
            world.socket.drop(1006);
            await world.settle();
            world.request.stream()(record(open("e.1")));
            await world.advance(45000);
            await world.advance(500);
            for (let i = 0; i < 2; i++) {
              world.request.answer("<h1>Log in to this network</h1>", { "Content-Type": "text/html" });
              await world.settle();
            }
            await world.advance(1000);
            return transports;
        """)
        begin = ["connecting websocket", "connecting sse", "open sse", "waiting sse"]
        self.assertEqual(
            transports,
            [
                *begin,
                "connecting sse",
                "connecting longpoll",
                "waiting longpoll",
                "connecting websocket",
            ],
        )

    def test_the_second_best_is_tried_after_the_best(self) -> None:
        """
        Where only long-polling got through, each better way has its chance, and the poll goes on
        until one is open.
        """
        transport, aborted = self.js("""
            const subscription = world.subscribe({ transports: ["websocket", "sse", "longpoll"], upgradeAfter: 20000 });
            await world.settle();
            world.socket.drop(1006);
            await world.advance(10000);
            const empty = JSON.stringify({ events: [], cursor: "e.1" });
            world.request.answer(empty);
            await world.advance(20000);
            const poll = world.request;
            world.socket.drop(1006);
            await world.settle();
            const early = poll.signal.aborted;
            world.request.stream()(record(open("e.1")));
            await world.settle();
            return [subscription.transport, [early, poll.signal.aborted]];
        """)
        self.assertEqual((transport, aborted), ("sse", [False, True]))

    def test_a_first_event_is_told_even_if_nothing_opened(self) -> None:
        """A server that forgets plumber.open does not lose its first event."""
        log = self.js("""
            world.subscribe({ transports: ["websocket"] });
            await world.settle();
            world.socket.say(event("e.1"), event("e.2"));
            return world.taken();
        """)
        self.assertEqual(log, ["connecting", "open", "e.1", "e.2"])

    def test_the_better_way_is_tried_beside_the_one_that_works(self) -> None:
        """After five minutes a WebSocket is tried anew; what both ways bring is told once."""
        transport, log, aborted = self.js("""
            const subscription = world.subscribe();
            await world.settle();
            world.socket.drop(1006);
            await world.settle();
            const say = world.request.stream();
            say(record(open("e.1")));
            const alive = async (ms) => { for (; ms; ms -= 30000) { await world.advance(30000); say(":\\n\\n"); } };
            await alive(300000);
            world.socket.drop(1006);
            await alive(300000);
            say(record(event("e.2")));
            await world.settle();
            world.socket.say(open("e.1"), event("e.2"), event("e.3"));
            return [subscription.transport, world.taken(), world.requests[0].signal.aborted];
        """)
        self.assertEqual((transport, aborted), ("websocket", True))
        self.assertEqual(log, ["connecting", "connecting", "open", "e.2", "open", "e.3"])

    def test_long_polling_stands_where_the_answer_says(self) -> None:
        """
        The first question waits for nothing, each further one for what follows, an empty answer
        costs a pause.
        """
        queries, log = self.js("""
            world.subscribe({ transports: ["longpoll"] });
            await world.settle();
            for (const [events, cursor] of [[[], "e.4"], [[event("e.5"), event("e.6")], "e.6"], [[], "e.8"]]) {
              world.request.answer(JSON.stringify({ events, cursor }));
              await world.settle();
            }
            const early = world.requests.length;
            await world.advance(250);
            await world.advance(39999);
            world.log.push("patient");
            await world.advance(1);
            await world.advance(500);
            const bye = { type: "plumber.bye", cursor: "e.8", data: { reconnect_after: 2 } };
            world.request.answer(JSON.stringify({ events: [bye], cursor: "e.8" }));
            await world.settle();
            return [[early, ...world.requests.map(({ url }) => url.split("?")[1])], world.taken()];
        """)
        self.assertEqual(
            queries,
            [
                3,
                "wait=0",
                "wait=25&after=e.4",
                "wait=25&after=e.6",
                "wait=25&after=e.8",
                "wait=0&after=e.8",
            ],
        )
        again = ["connecting", "open", ["waiting", 3000]]
        self.assertEqual(
            log, ["connecting", "open", "e.5", "e.6", "patient", ["waiting", 500], *again]
        )

    def test_a_long_poll_may_not_know_yet_where_it_stands(self) -> None:
        """
        An answer without a cursor leaves the place in the history as it was, even if that is the
        very beginning.
        """
        queries = self.js("""
            const subscription = world.subscribe({ transports: ["longpoll"], after: "earliest" });
            await world.settle();
            world.request.answer(JSON.stringify({ events: [], cursor: "" }));
            await world.settle();
            world.request.answer(JSON.stringify({ events: [event("e.1")], cursor: "e.1" }));
            await world.settle();
            return world.requests.map(({ url }) => url.split("?")[1]);
        """)
        self.assertEqual(
            queries, ["wait=0&after=earliest", "wait=25&after=earliest", "wait=25&after=e.1"]
        )

    def test_what_is_in_no_history_is_told_too(self) -> None:
        """An event without a cursor comes through, and leaves the cursor alone."""
        log, cursor = self.js("""
            const subscription = world.subscribe({ transports: ["websocket"] });
            await world.settle();
            world.socket.say(open("e.4"), event(null), event("e.5"), event(null));
            return [world.taken(), subscription.cursor];
        """)
        self.assertEqual((log, cursor), (["connecting", "open", None, "e.5", None], "e.5"))

    def test_back_online_there_is_no_more_waiting(self) -> None:
        """
        The browser's word that the network is back ends a wait, and puts a connection that seems
        open to the test.
        """
        log, sockets = self.js("""
            world.subscribe({ transports: ["websocket"] });
            await world.settle();
            for (let i = 0; i < 5; i++) {
              world.socket.drop(1006);
              if (i < 4) await world.advance(30000);
            }
            world.taken();
            world.luck = 0;
            dispatchEvent(new Event("online"));
            await world.advance(0);
            world.socket.say(open("e.1"));
            dispatchEvent(new Event("online"));
            await world.advance(0);
            world.socket.say(open("e.1"), event("e.2"));
            return [world.taken(), world.sockets.slice(-2).map((socket) => Boolean(socket.isClosed))];
        """)
        self.assertEqual((log, sockets), (["connecting", "open", "open", "e.2"], [True, False]))

    def test_a_page_that_is_left_holds_no_connection(self) -> None:
        """
        A page kept for the way back is no subscriber, and carries on from its cursor when it is
        shown again.
        """
        left, url, log = self.js("""
            world.subscribe({ transports: ["websocket"] });
            await world.settle();
            dispatchEvent(new Event("pageshow"));
            world.socket.say(open("e.1"), event("e.2"));
            dispatchEvent(new Event("pagehide"));
            const left = [world.socket.isClosed, world.timers.length];
            dispatchEvent(new Event("pageshow"));
            await world.settle();
            world.sockets[0].say(event("e.3"));
            return [left, world.socket.url, world.taken()];
        """)
        self.assertEqual((left, url), ([True, 0], "ws://server.test/events/a%2Fb?after=e.2"))
        self.assertEqual(log, ["connecting", "open", "e.2", ["waiting", None], "connecting"])

    def test_what_cannot_be_read_is_asked_for_again(self) -> None:
        """
        A broken message is never skipped in silence: the connection is made anew from the last good
        cursor.
        """
        urls = self.js("""
            world.subscribe({ transports: ["websocket"] });
            await world.settle();
            world.socket.say(open("e.1"), event("e.2"));
            world.socket.onmessage({ data: "{" });
            world.socket.say(event("e.4"));
            await world.advance(500);
            return [world.socket.url, world.sockets[0].isClosed, world.taken().includes("e.4")];
        """)
        self.assertEqual(urls, ["ws://server.test/events/a%2Fb?after=e.2", True, False])

    def test_closed_is_closed(self) -> None:
        """After close() no handler hears of a result, no timer runs and no connection is left."""
        log, left = self.js("""
            const subscription = world.subscribe({ transports: ["websocket"] });
            await world.settle();
            world.socket.say(open("e.1"));
            subscription.on("event", () => subscription.close());
            world.socket.say(event("e.2"), event("e.3"));
            world.socket.drop(1000);
            subscription.close();
            dispatchEvent(new Event("online"));
            const timers = world.timers.length;
            await world.advance(600000);
            return [world.taken(), [timers, world.sockets.length, world.socket.isClosed]];
        """)
        end = ["close", {"code": 1000, "status": None, "reason": "closed here"}]
        self.assertEqual((log, left), (["connecting", "open", "e.2", "closed", end], [0, 1, True]))

    def test_it_is_a_module_too(self) -> None:
        """The same file can be imported, and gives the same class."""
        name = self.js(f"""
            const source = {json.dumps(CLIENT.read_text())};
            delete globalThis.Asyncplumber;
            await import(URL.createObjectURL(new Blob([source], {{ type: "text/javascript" }})));
            return Asyncplumber.name;
        """)
        self.assertEqual(name, "Asyncplumber")


class PageTests(SynchronousTestCase):
    """The page at ``/`` of a real server, in a real browser."""

    skip = missing()

    def serve(self, *options: str) -> Server:
        server = start_server(*options)
        self.addCleanup(server.stop)
        return server

    def visit(self, url: str, transport: str = "") -> Browser:
        """Open the page and wait until it is connected."""
        page = browser()
        page.complaints()  # those of the tests before
        page.go(f"{url}/#crew")
        self.addCleanup(page.go, "about:blank")
        if transport:
            choose = "const choice = document.getElementById('transport'); choice.value = args[0]; "
            page.run(choose + "choice.dispatchEvent(new Event('change'))", transport)
        page.until(
            "return document.querySelector('#state[data-state=open]')?.dataset.transport === args[0]",
            transport or "websocket",
        )
        return page

    def post(self, server: Server, data: Any) -> None:
        body = json.dumps(data).encode()
        with urlopen(
            Request(f"{server.url}/hooks/crew", body, {"Content-Type": "application/json"})
        ) as answer:
            self.assertIn(answer.status, (201, 202))

    def shown(self, page: Browser, count: int) -> list[Any]:
        """The data on the page, the oldest first, once there are so many."""
        page.until("return document.querySelectorAll('.data').length >= args[0]", count)
        return [
            json.loads(text)
            for text in page.run(
                "return [...document.querySelectorAll('.data')].map((e) => e.innerText)"
            )
        ][::-1]

    def check_transport(self, transport: str) -> None:
        server = self.serve()
        page = self.visit(server.url, transport)
        self.post(server, {"n": 1})
        self.post(server, ["<b>", "ü"])
        self.assertEqual(self.shown(page, 2), [{"n": 1}, ["<b>", "ü"]])
        facts = page.run("return document.querySelector('.facts').innerText")
        self.assertRegex(facts, re.compile(r"\Aresult\s+\d+ ms\s+[0-9a-z]+\.2\s", re.S))
        self.assertEqual(page.complaints(), [])

    def test_results_are_shown_over_a_websocket(self) -> None:
        """
        A POST appears with its data, latency and cursor, and the browser has nothing to complain
        of.
        """
        self.check_transport("websocket")

    def test_results_are_shown_over_server_sent_events(self) -> None:
        """The same where the reader chose SSE."""
        self.check_transport("sse")

    def test_results_are_shown_over_long_polling(self) -> None:
        """The same where the reader chose long-polling."""
        self.check_transport("longpoll")

    def test_it_works_below_a_path_of_another_site(self) -> None:
        """``Plumber.resource`` has the page, the webhook and all three transports of ``/events``."""
        process = Process([sys.executable, "-c", MOUNTED])
        self.addCleanup(process.stop)
        url = f"http://127.0.0.1:{process.wait_for(r'^port ([0-9]+)')[1]}/pipes"
        for number, transport in enumerate(("websocket", "sse", "longpoll"), 1):
            page = self.visit(url, transport if number > 1 else "")
            page.click("send")
            (result,) = self.shown(page, 1)
            self.assertEqual(result, {"task": "test", "status": "done", "number": 1})
        links = page.run(
            "return [...document.querySelectorAll('a, link, script, img')]"
            ".map((e) => e.href || e.src)"
        )
        self.assertEqual([link for link in links if not link.startswith(url + "/")], [])
        self.assertEqual(page.complaints(), [])

    def test_the_button_sends_a_result(self) -> None:
        """
        A newcomer needs one click to see the first result, and can copy the command that does the
        same.
        """
        server = self.serve()
        page = self.visit(server.url)
        page.click("send")
        self.assertEqual(self.shown(page, 1), [{"task": "test", "status": "done", "number": 1}])
        receipt = page.until("return document.getElementById('receipt').innerText")
        self.assertRegex(receipt, r"^201: accepted as [0-9a-z]+\.1 in \d+ ms; subscribers: 1$")
        curl = page.run("return document.getElementById('curl').innerText")
        self.assertIn(f"'{server.url}/hooks/crew'", curl)

    def test_falls_back_where_websockets_are_refused(self) -> None:
        """Behind a proxy that knows no WebSockets the page finds its way by SSE."""
        server = self.serve()
        proxy = NoWebSockets(server.port)
        self.addCleanup(proxy.stop)
        page = browser()
        self.addCleanup(page.go, "about:blank")
        page.go(f"{proxy.url}/#crew")
        page.until(
            "return document.querySelector('#state[data-state=open]')?.dataset.transport === 'sse'"
        )
        self.assertEqual(proxy.refused, 1)
        self.post(server, "hello")
        page.until("return document.querySelector('.data')?.innerText === 'hello'")

    def test_nothing_is_lost_or_doubled_by_a_killed_server(self) -> None:
        """
        What came in before, during and after the absence of the server at this port is shown once,
        in order.
        """
        with tempfile.TemporaryDirectory() as folder:
            store = ["--store", f"sqlite:{Path(folder) / 'history.db'}"]
            first = self.serve(*store)
            page = self.visit(first.url)
            self.post(first, 1)
            self.shown(page, 1)
            first.kill()
            page.until(
                "return document.getElementById('state').innerText.startsWith('reconnecting')"
            )
            elsewhere = self.serve(*store)
            self.post(elsewhere, 2)
            self.post(elsewhere, 3)
            elsewhere.stop()
            again = self.serve(*store, "--port", str(first.port))
            self.assertEqual(self.shown(page, 3), [1, 2, 3])
            self.post(again, 4)
            self.assertEqual(self.shown(page, 4), [1, 2, 3, 4])
            again.stop()

    def test_the_browsers_own_event_source_comes_back_after_a_planned_stop(self) -> None:
        """
        The stream ends without its last chunk; the browser reconnects with the last id, and nothing
        is missing.
        """
        with tempfile.TemporaryDirectory() as folder:
            store = ["--store", f"sqlite:{Path(folder) / 'history.db'}"]
            first = self.serve(*store)
            page = browser()
            self.addCleanup(page.go, "about:blank")
            page.go(f"{first.url}/healthz")
            page.run(
                "window.got = []; window.stream = new EventSource('/events/crew');"
                "stream.addEventListener('result', (event) => got.push(JSON.parse(event.data).data));"
                "stream.addEventListener('plumber.bye', () => { window.bye = true; });"
                "await new Promise((resolve) => stream.addEventListener('plumber.open', resolve, { once: true }))"
            )
            self.post(first, 1)
            page.until("return got.length === 1")
            first.stop()
            page.until("return window.bye && stream.readyState === EventSource.CONNECTING")
            again = self.serve(*store, "--port", str(first.port))
            self.post(again, 2)
            page.until("return got.length === 2")
            self.post(again, 3)
            page.until("return got.length === 3")
            self.assertEqual(page.run("stream.close(); return got"), [1, 2, 3])
            page.complaints()  # that the connection was lost, and refused for a while
            again.stop()

    def test_pages_of_named_origins_may_send_cookies(self) -> None:
        """The browser lets them read the answer, and those whom only a star lets in it does not."""
        elsewhere = self.serve()
        origin = elsewhere.url.replace("127.0.0.1", "app.localhost")
        page = browser()
        self.addCleanup(page.go, "about:blank")
        page.go(f"{origin}/healthz")
        ask = "return await fetch(args[0], {credentials: args[1]}).then((answer) => answer.status, () => 'refused')"
        for allowed, include in (
            ("http://*.localhost:" + origin.rpartition(":")[2], 200),
            (origin, 200),
            ("*", "refused"),
        ):
            url = f"{self.serve('--allow-origin', allowed).url}/events/crew?wait=0"
            found = [page.run(ask, url, credentials) for credentials in ("include", "omit")]
            self.assertEqual(found, [include, 200], allowed)
        page.complaints()

    def test_a_page_that_is_left_is_no_subscriber(self) -> None:
        """
        Browsers keep pages for the way back, and their connections too, unless the page lets go.
        """
        server = self.serve()
        for transport in ("websocket", "sse"):
            page = self.visit(server.url, transport)
            page.go(f"{server.url}/healthz")
            subscribers = (
                f"return (await (await fetch('{server.url}/accounts/crew')).json()).subscribers"
            )
            page.until(subscribers + " === 0", seconds=5)

    def test_a_gap_is_shown(self) -> None:
        """A server that forgot everything is not taken for one where nothing happened."""
        first = self.serve()
        page = self.visit(first.url)
        self.post(first, 1)
        self.shown(page, 1)
        first.stop()
        second = self.serve("--port", str(first.port))
        page.until("return document.querySelector('.gap')?.innerText.includes('missed')")
        self.post(second, 2)
        self.assertEqual(self.shown(page, 2), [1, 2])

    def test_a_stopped_server_is_noticed(self) -> None:
        """The page says that it is reconnecting, and says why a test result cannot be sent."""
        server = self.serve()
        page = self.visit(server.url)
        server.stop()
        page.until("return document.getElementById('state').innerText.startsWith('reconnecting')")
        page.click("send")
        page.until("return document.getElementById('receipt').innerText.startsWith('Not sent')")
