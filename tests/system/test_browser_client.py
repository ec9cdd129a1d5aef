"""asyncplumber.js in a real Chromium, in a world of fakes and without a network."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from harness.browser import CLIENT, in_fake_world, missing

WORLD = "const world = new World(), { open, event, record } = World; "


class ClientTests(SynchronousTestCase):
    """asyncplumber.js with fake sockets, requests, clock and randomness."""

    skip = missing()

    def js(self, script: str) -> Any:
        return in_fake_world(WORLD + script)()

    def test_an_event_stream_may_be_cut_anywhere(self) -> None:
        """The parser follows the standard for each kind of line, wherever the text is cut."""
        text = ": hello\r\nid: e.1\r\nevent: a\r\ndata: x\r\ndata:  y\r\n\r\nid:bad\0\rdata\r\r"
        text += "event: lost\n\nretry: 9\ndata: ü\n\ndata: cut"
        whole, *cuts = self.js(f"""
            const text = {json.dumps(text)};
            const read = (...pieces) => {{
              const got = [];
              const parse = Asyncplumber.sseParser((record) => got.push(record));
              pieces.forEach(parse);
              return got;
            }};
            const cut = (_, at) => read(text.slice(0, at), "", text.slice(at));
            return [read(text), read(...text), ...[...text].map(cut)];
        """)
        first = {"type": "a", "data": "x\n y", "id": "e.1"}
        self.assertEqual(
            whole, [first, *({"type": "message", "data": data, "id": "e.1"} for data in ["", "ü"])]
        )
        self.assertGreater(len(cuts), 90)
        self.assertTrue(all(cut == whole for cut in cuts))

    def test_cursors_are_compared_by_number_within_an_epoch(self) -> None:
        """10 comes after 9, even where a Number is too small, and after any other epoch."""
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
        """Only an attempt that would end in the same way is not repeated."""
        final = self.js("""
            const codes = [1000, 1001, 1002, 1003, 1006, 1007, 1008, 1009, 1011, 1012, 1013];
            codes.push(4000, 4401, 4403, 4408, 4429, 4500);
            const statuses = [400, 401, 403, 404, 408, 410, 425, 429, 500, 502, 503];
            const { isFinal } = Asyncplumber;
            return [
              codes.filter((code) => isFinal({ code })),
              statuses.filter((status) => isFinal({ status })),
            ];
        """)
        self.assertEqual(
            final, [[1002, 1003, 1007, 1008, 1009, 4401, 4403], [400, 401, 403, 404, 410]]
        )

    def test_each_event_comes_once_across_a_reconnect(self) -> None:
        """The client asks for what follows its cursor; a handler that throws costs no event."""
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
        """Full jitter below 0.5 s, 1 s, 2 s … 30 s; a connection must last to reset it."""
        waits = self.js("""
            const waits = [];
            const note = ({ state, retryIn }) => state === "waiting" && waits.push(retryIn);
            world.subscribe({ transports: ["websocket"] }).on("state", note);
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
        """The time of plumber.bye is kept, with a random time on top."""
        log = self.js("""
            world.subscribe({ transports: ["websocket"] });
            await world.settle();
            const bye = { type: "plumber.bye", cursor: "e.1", data: { reconnect_after: 3 } };
            world.socket.say(open("e.1"), bye);
            world.socket.drop(1012);
            return world.taken();
        """)
        bye = ["bye", {"reconnect_after": 3}]
        self.assertEqual(log, ["connecting", "open", bye, ["waiting", 3500]])

    def test_after_a_planned_close_waits_stay_short(self) -> None:
        """Eight waits stay below 1 s; then they grow as after any other end."""
        waits = self.js("""
            const waits = [];
            const note = ({ state, retryIn }) => state === "waiting" && waits.push(retryIn);
            world.subscribe({ transports: ["websocket", "sse"] }).on("state", note);
            await world.settle();
            const bye = { type: "plumber.bye", cursor: null, data: { reconnect_after: 3 } };
            world.socket.say(open("e.1"), bye);
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

    def test_a_gap_is_reported_and_moves_the_cursor(self) -> None:
        """After a gap the cursor of the notice counts, even if its epoch is another one."""
        log, cursor = self.js("""
            const subscription = world.subscribe({ transports: ["websocket"], after: "e.90" });
            await world.settle();
            const data = { from: "e.90", to: "f.3", oldest: "f.1" };
            const gap = { type: "plumber.gap", cursor: "f.3", data };
            world.socket.say(open("f.3"), gap, event("f.3"), event("f.4"));
            return [world.taken(), subscription.cursor];
        """)
        gap = {"from": "e.90", "to": "f.3", "oldest": "f.1"}
        self.assertEqual((log, cursor), (["connecting", "open", ["gap", gap], "f.4"], "f.4"))

    def test_an_overloaded_server_is_left_alone_as_long_as_it_asks(self) -> None:
        """The client keeps the Retry-After of a 503; a 404 is final."""
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

    def test_a_silent_event_stream_is_dead(self) -> None:
        """Comments keep it alive; 45 seconds without one end it."""
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

    def test_a_blocked_transport_gives_way_to_the_next(self) -> None:
        """A refused WebSocket or a stream that is held back does; a dead network does not."""
        log = self.js("""
            const subscription = world.subscribe();
            await world.settle();
            world.socket.drop(1006);
            await world.settle();
            world.request.fail();
            await world.advance(500);
            world.socket.drop(1006);
            await world.advance(10000);
            const queries = world.requests.map(({ url }) => url.split("?")[1] ?? null);
            const seen = [queries, world.taken()];
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

    def test_when_a_transport_stops_working_the_best_is_next(self) -> None:
        """Another network may let a WebSocket through."""
        transports = self.js("""
            const transports = [];
            const subscription = world.subscribe();
            subscription.on("state", ({ state, transport }) => {
              transports.push(`${state} ${transport}`);
            });
            await world.settle();
            world.socket.drop(1006);
            await world.settle();
            world.request.stream()(record(open("e.1")));
            await world.advance(45000);
            await world.advance(500);
            for (let i = 0; i < 2; i++) {
              const html = { "Content-Type": "text/html" };
              world.request.answer("<h1>Log in to this network</h1>", html);
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
        """The long-poll in use goes on until a better transport is open."""
        transport, aborted = self.js("""
            const transports = ["websocket", "sse", "longpoll"];
            const subscription = world.subscribe({ transports, upgradeAfter: 20000 });
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

    def test_the_first_event_opens_a_connection(self) -> None:
        """A server that forgets plumber.open does not lose its first event."""
        log = self.js("""
            world.subscribe({ transports: ["websocket"] });
            await world.settle();
            world.socket.say(event("e.1"), event("e.2"));
            return world.taken();
        """)
        self.assertEqual(log, ["connecting", "open", "e.1", "e.2"])

    def test_a_better_transport_is_tried_beside_the_one_in_use(self) -> None:
        """After five minutes; what both bring is reported once."""
        transport, log, aborted = self.js("""
            const subscription = world.subscribe();
            await world.settle();
            world.socket.drop(1006);
            await world.settle();
            const say = world.request.stream();
            say(record(open("e.1")));
            const keepAlive = async () => {
              for (let i = 0; i < 10; i++) {
                await world.advance(30000);
                say(":\\n\\n");
              }
            };
            await keepAlive();
            world.socket.drop(1006);
            await keepAlive();
            say(record(event("e.2")));
            await world.settle();
            world.socket.say(open("e.1"), event("e.2"), event("e.3"));
            return [subscription.transport, world.taken(), world.requests[0].signal.aborted];
        """)
        self.assertEqual((transport, aborted), ("websocket", True))
        self.assertEqual(log, ["connecting", "connecting", "open", "e.2", "open", "e.3"])

    def test_a_long_poll_continues_at_the_cursor_of_the_answer(self) -> None:
        """The first request does not wait, the others do; an empty answer causes a pause."""
        queries, log = self.js("""
            world.subscribe({ transports: ["longpoll"] });
            await world.settle();
            const two = [event("e.5"), event("e.6")];
            for (const [events, cursor] of [[[], "e.4"], [two, "e.6"], [[], "e.8"]]) {
              world.request.answer(JSON.stringify({ events, cursor }));
              await world.settle();
            }
            const early = world.requests.length;
            await world.advance(250);
            await world.advance(39999);
            world.log.push("waited");
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
        again = ["connecting", "open", ["bye", {"reconnect_after": 2}], ["waiting", 3000]]
        self.assertEqual(
            log, ["connecting", "open", "e.5", "e.6", "waited", ["waiting", 500], *again]
        )

    def test_an_answer_without_a_cursor_moves_nothing(self) -> None:
        """The next long-poll asks from the same place, even if that is the very beginning."""
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

    def test_an_event_without_a_cursor_is_reported(self) -> None:
        """It is in no history, and leaves the cursor as it is."""
        log, cursor = self.js("""
            const subscription = world.subscribe({ transports: ["websocket"] });
            await world.settle();
            world.socket.say(open("e.4"), event(null), event("e.5"), event(null));
            return [world.taken(), subscription.cursor];
        """)
        self.assertEqual((log, cursor), (["connecting", "open", None, "e.5", None], "e.5"))

    def test_back_online_the_client_does_not_wait(self) -> None:
        """It connects at once; if it seems open already, it tests the connection."""
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
            const closed = world.sockets.slice(-2).map((socket) => Boolean(socket.isClosed));
            return [world.taken(), closed];
        """)
        self.assertEqual((log, sockets), (["connecting", "open", "open", "e.2"], [True, False]))

    def test_a_page_that_is_left_holds_no_connection(self) -> None:
        """It resumes from its cursor when it is shown again."""
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

    def test_a_message_that_cannot_be_read_is_asked_for_again(self) -> None:
        """The client reconnects from its last good cursor."""
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
        """After close() no handler is called, no timer runs and no connection is left."""
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
