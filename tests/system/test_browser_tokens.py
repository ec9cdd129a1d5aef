"""How asyncplumber.js proves itself: tokens, their renewal and refusals, in a world of fakes."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from harness.browser import in_fake_world, missing

# ``numbered`` is a page's function for a token: t1, t2, … with what it was told in ``asked``.
WORLD = """
    const world = new World(), { open, event, bye, record } = World;
    const asked = [];
    const numbered = ({ refused }) => {
      asked.push(refused);
      return "t" + asked.length;
    };
    const bearer = ({ protocols }) => protocols.map((name) => name.replace("plumber.bearer.", ""));
"""
LASTS = '{ expires_in: 100, reason: "of the test" }'
REFUSED = json.dumps({"error": {"code": "invalid-token", "message": "no"}})


def b64(text: str) -> str:
    """Return the text in base64url without padding."""
    return urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


class TokenTestCase(SynchronousTestCase):
    """asyncplumber.js with fake sockets, requests, clock and randomness."""

    skip = missing()

    def js(self, script: str) -> Any:
        return in_fake_world(WORLD + script)()


class TravelTests(TokenTestCase):
    """A token travels in a header or in a subprotocol, and never in a URL."""

    def test_a_websocket_carries_it_as_a_subprotocol(self) -> None:
        """In base64url without padding; without a token no subprotocol is offered."""
        for token in ("a", "ab", "abc", "??>>~~", "ü€"):
            found = self.js(f"""
                world.subscribe({{ transports: ["websocket"], token: {json.dumps(token)} }});
                await world.settle();
                return [world.socket.protocols, world.socket.url];
            """)
            names = ["plumber.v1", "plumber.bearer." + b64(token)]
            self.assertEqual(found, [names, "ws://server.test/events/a%2Fb"])
        bare = "world.subscribe(); await world.settle(); return world.socket.protocols"
        self.assertEqual(self.js(bare), [])

    def test_a_request_carries_it_in_its_header(self) -> None:
        """For an event stream and for each long-poll."""
        found = self.js("""
            for (const transport of ["sse", "longpoll"]) {
              world.subscribe({ transports: [transport], token: "t" });
              await world.settle();
            }
            world.request.answer(JSON.stringify({ events: [event("e.1")], cursor: "e.1" }));
            await world.settle();
            return world.requests.map(({ url, headers }) => [url, headers.Authorization]);
        """)
        url = "http://server.test/events/a%2Fb"
        self.assertEqual(
            found,
            [
                [url, "Bearer t"],
                [url + "?wait=0", "Bearer t"],
                [url + "?wait=25&after=e.1", "Bearer t"],
            ],
        )

    def test_a_function_is_called_before_every_attempt(self) -> None:
        """Also one that is asynchronous, and also for the attempt with the next transport."""
        found = self.js("""
            const token = async (facts) => numbered(facts);
            world.subscribe({ transports: ["websocket", "sse"], token });
            await world.settle();
            world.socket.drop(1006);
            await world.settle();
            world.request.fail();
            await world.advance(500);
            world.socket.say(open("e.1"));
            world.socket.drop(1006);
            await world.advance(1000);
            const headers = world.requests.map(({ headers }) => headers.Authorization);
            return [world.sockets.map(bearer), headers, asked];
        """)
        self.assertEqual(
            found,
            [
                [["plumber.v1", b64(token)] for token in ("t1", "t3", "t4")],
                ["Bearer t2"],
                [False] * 4,
            ],
        )

    def test_a_function_may_have_no_token(self) -> None:
        """Then a cookie is what proves the user."""
        found = self.js("""
            world.subscribe({ transports: ["websocket"], token: () => null });
            world.subscribe({ transports: ["sse"], token: () => null });
            await world.settle();
            return [world.socket.protocols, world.request.headers];
        """)
        self.assertEqual(found, [[], {"Accept": "text/event-stream"}])

    def test_a_function_that_fails_is_asked_again_later(self) -> None:
        """The application may be away; this says nothing about the transport."""
        log = self.js("""
            let number = 0;
            const token = async () => {
              number += 1;
              if (number === 1) throw new Error("away");
              if (number === 2) return { access_token: "t" };
              if (number === 3) await new Promise(() => {});
              return "t";
            };
            const reasons = [];
            const subscription = world.subscribe({ token });
            subscription.on("state", ({ reason }) => reason && reasons.push(reason));
            await world.settle();
            await world.advance(500);
            await world.advance(1000 + 10000);
            await world.advance(2000);
            return [reasons, world.requests.length, world.sockets.length, subscription.transport];
        """)
        no_string = "TypeError: a token is a string, or null for none"
        reasons = ["Error: away", no_string, "no token in time"]
        self.assertEqual(log, [reasons, 0, 1, "websocket"])

    def test_what_is_no_token_is_refused_at_once(self) -> None:
        """By the constructor."""
        found = self.js("""
            const errors = [];
            for (const token of [7, {}, undefined]) {
              try {
                world.subscribe({ token }).close();
                errors.push(null);
              } catch (error) {
                errors.push(error.name);
              }
            }
            return errors;
        """)
        self.assertEqual(found, ["TypeError"] * 3)


class RenewalTests(TokenTestCase):
    """Before a token ends, the client connects with a new one beside the old connection."""

    def test_the_next_connection_opens_beside_the_old_one(self) -> None:
        """After 70 to 80 % of the time; what both bring is passed on once, in order."""
        for luck, at in ((0, 70000), (1, 80000)):
            found = self.js(f"""
                world.luck = {luck};
                const subscription = world.subscribe({{
                  transports: ["websocket"], token: numbered
                }});
                await world.settle();
                world.socket.say(open("e.1", {LASTS}), event("e.2"));
                await world.advance({at} - 1);
                const before = world.sockets.length;
                await world.advance(1);
                const [old, next] = world.sockets;
                old.say(event("e.3"), event(null));
                next.say(open("e.3", {LASTS}), event("e.3"), event("e.4"));
                const closed = [old, next].map((socket) => Boolean(socket.isClosed));
                const urls = world.sockets.map(({{ url }}) => url.split("?")[1] ?? null);
                await world.advance({at} - 1);
                const later = world.sockets.length;
                await world.advance(1);
                const lengths = [before, later, world.sockets.length];
                return [lengths, urls, closed, world.taken(), asked, subscription.state];
            """)
            log = ["connecting", "open", "e.2", "e.3", None, "open", "e.4"]
            self.assertEqual(
                found,
                [[1, 2, 3], [None, "after=e.2"], [True, False], log, [False] * 3, "open"],
            )

    def test_events_without_a_cursor_come_once_as_well(self) -> None:
        """Two connections to one instance bring the same ID."""
        log = self.js(f"""
            const ids = [];
            const subscription = world.subscribe({{ transports: ["websocket"], token: numbered }});
            subscription.on("event", ({{ id }}) => ids.push(id));
            await world.settle();
            const [a, b, c] = ["a", "b", "c"].map((id) => ({{ ...event(null), id }}));
            world.socket.say(open("e.1", {LASTS}), a);
            await world.advance(80000);
            world.sockets[0].say(b);
            world.sockets[1].say(open("e.1", {LASTS}), b, c);
            return ids;
        """)
        self.assertEqual(log, ["a", "b", "c"])

    def test_a_gap_that_the_old_connection_bridged_is_none(self) -> None:
        """The new connection reports it, but the events after it were passed on already."""
        log, cursor = self.js(f"""
            const subscription = world.subscribe({{ transports: ["websocket"], token: numbered }});
            await world.settle();
            world.socket.say(open("e.1", {LASTS}));
            await world.advance(80000);
            world.sockets[0].say(event("e.2"), event("e.3"), event("e.4"));
            const gap = {{ type: "plumber.gap", cursor: "e.3", data: {{}} }};
            world.sockets[1].say(open("e.3", {LASTS}), gap, event("e.4"), event("e.5"));
            return [world.taken(), subscription.cursor];
        """)
        self.assertEqual(
            (log, cursor), (["connecting", "open", "e.2", "e.3", "e.4", "open", "e.5"], "e.5")
        )

    def test_an_event_stream_is_renewed_too(self) -> None:
        """The old request is aborted when the new stream is open."""
        found = self.js(f"""
            world.subscribe({{ transports: ["sse"], token: numbered, idleTimeout: 1e6 }});
            await world.settle();
            world.request.stream()(record(open("e.1", {LASTS})));
            await world.advance(80000);
            const [old, next] = world.requests;
            const early = old.signal.aborted;
            next.stream()(record(open("e.1", {LASTS})));
            await world.settle();
            const headers = world.requests.map(({{ headers }}) => headers.Authorization);
            return [headers, [early, old.signal.aborted, next.signal.aborted]];
        """)
        self.assertEqual(found, [["Bearer t1", "Bearer t2"], [False, True, False]])

    def test_a_renewal_that_fails_is_repeated(self) -> None:
        """The old connection goes on meanwhile; the function hears of a refusal."""
        found = self.js(f"""
            world.subscribe({{ transports: ["websocket"], token: numbered }});
            await world.settle();
            world.socket.say(open("e.1", {LASTS}));
            await world.advance(80000);
            world.socket.drop(4401, "invalid-token");
            world.sockets[0].say(event("e.2"));
            await world.advance(10000);
            world.socket.drop(1006);
            await world.advance(10000);
            world.socket.say(open("e.2", {LASTS}), event("e.3"));
            return [asked, world.taken(), world.sockets.length];
        """)
        log = ["connecting", "open", "e.2", "open", "e.3"]
        self.assertEqual(found, [[False, False, True, True], log, 4])

    def test_without_a_function_nothing_is_renewed(self) -> None:
        """The same token would end at the same time."""
        for more in ("{}", '{ token: "t" }'):
            found = self.js(f"""
                world.subscribe({{ transports: ["websocket"], ...{more} }});
                await world.settle();
                world.socket.say(open("e.1", {LASTS}));
                await world.advance(1e6);
                return world.sockets.length;
            """)
            self.assertEqual(found, 1)

    def test_a_token_that_lasts_for_years_does_not_overflow_the_timer(self) -> None:
        """A browser fires a timer of more than 2**31 - 1 ms at once."""
        found = self.js("""
            world.subscribe({ transports: ["websocket"], token: numbered });
            await world.settle();
            world.socket.say(open("e.1", { expires_in: 1e9 }));
            return Math.max(...world.timers.map(({ at }) => at));
        """)
        self.assertEqual(found, 2**31 - 1)

    def test_a_laptop_that_slept_past_the_end_gets_a_new_token(self) -> None:
        """Its timer is late; the first of timer, close code and online event reconnects."""
        for wake in ("await world.advance(0);", 'world.socket.drop(4401, "expired");'):
            found = self.js(f"""
                world.luck = 0;
                world.subscribe({{ transports: ["websocket"], token: numbered }});
                await world.settle();
                world.socket.say(open("e.1", {LASTS}), event("e.2"));
                await world.advance(5000);
                world.now += 1e7; // no timer ran meanwhile
                {wake}
                await world.settle();
                world.sockets[1].say(open("e.9", {LASTS}), event("e.3"));
                return [world.sockets.map(bearer), world.socket.url, world.taken().at(-1)];
            """)
            protocols = [["plumber.v1", b64(token)] for token in ("t1", "t2")]
            url = "ws://server.test/events/a%2Fb?after=e.2"
            self.assertEqual(found, [protocols, url, "e.3"], wake)


class RefusalTests(TokenTestCase):
    """What the client does when the server refuses it, as the code says."""

    def test_a_refused_token_is_replaced_at_once(self) -> None:
        """One attempt with a new token follows, by the same transport, without a wait."""
        found = self.js("""
            world.subscribe({ token: numbered });
            await world.settle();
            world.socket.drop(4401, "invalid-token");
            await world.settle();
            world.socket.say(open("e.1"));
            return [asked, world.sockets.map(bearer), world.requests.length, world.taken()];
        """)
        protocols = [["plumber.v1", b64(token)] for token in ("t1", "t2")]
        log = ["connecting", "connecting", "open"]
        self.assertEqual(found, [[False, True], protocols, 0, log])

    def test_the_second_refusal_in_a_row_slows_the_client_down(self) -> None:
        """It says so, and asks after 15 to 30 s, then more rarely, and not before 2.5 min."""
        found = self.js("""
            world.subscribe({ transports: ["websocket"], token: numbered });
            await world.settle();
            const log = [];
            world.luck = 0;
            for (let i = 0; i < 9; i++) {
              world.socket.drop(4401, "invalid-token");
              await world.settle();
              const [, facts] = world.taken().at(-1);
              if (facts.retryIn) {
                log.push(facts.retryIn);
                dispatchEvent(new Event("online"));
                await world.advance(facts.retryIn - 1);
                log.push(world.sockets.length);
                await world.advance(1);
              }
            }
            world.socket.drop(4401, "invalid-token");
            const last = world.taken().slice(-2);
            await world.advance(150000);
            world.socket.say(open("e.1"));
            world.socket.drop(4401, "expired");
            await world.settle();
            world.luck = 1;
            world.socket.drop(4401, "invalid-token");
            await world.settle();
            return [log, last, world.taken().at(-2)];
        """)
        waits = [15000, 30000, 60000, 120000, 150000, 150000, 150000, 150000]
        log = [number for place, wait in enumerate(waits) for number in (wait, place + 2)]
        refused = {"code": 4401, "status": None, "reason": "invalid-token", "retryIn": 150000}
        self.assertEqual(found[0], log)
        self.assertEqual(found[1], [["refused", 150000], ["refused", refused]])

    def test_a_response_of_401_is_the_same(self) -> None:
        """For event streams and long-polls."""
        for transport in ("sse", "longpoll"):
            found = self.js(f"""
                world.subscribe({{ transports: ["{transport}"], token: numbered }});
                await world.settle();
                world.request.answer('{REFUSED}', {{}}, 401);
                await world.settle();
                world.request.answer('{REFUSED}', {{}}, 401);
                await world.settle();
                return [asked, world.requests.length, world.taken()];
            """)
            refused = {"code": None, "status": 401, "reason": "HTTP 401", "retryIn": 30000}
            states = ["connecting", "connecting", ["refused", 30000], ["refused", refused]]
            self.assertEqual(found, [[False, True], 2, states])

    def test_without_a_function_a_refusal_is_final(self) -> None:
        """A string does not change, and the page is told."""
        for more in ("{}", '{ token: "t" }'):
            found = self.js(f"""
                world.subscribe({{ ...{more} }});
                await world.settle();
                world.socket.drop(4401, "unauthenticated");
                await world.advance(1e6);
                return [world.sockets.length, world.requests.length, world.taken()];
            """)
            facts = {"code": 4401, "status": None, "reason": "unauthenticated"}
            end = [["refused", {**facts, "retryIn": None}], ["close", facts]]
            self.assertEqual(found, [1, 0, ["connecting", "closed", *end]])

    def test_what_is_forbidden_is_final(self) -> None:
        """4403 and 403: a new token would not help."""
        for transport, refuse, facts in (
            (
                "websocket",
                'socket.drop(4403, "insufficient-scope")',
                {"code": 4403, "status": None, "reason": "insufficient-scope"},
            ),
            (
                "sse",
                'request.answer("", {}, 403)',
                {"code": None, "status": 403, "reason": "HTTP 403"},
            ),
        ):
            found = self.js(f"""
                world.subscribe({{ transports: ["{transport}"], token: numbered }});
                await world.settle();
                world.{refuse};
                await world.advance(1e6);
                return [asked, world.taken()];
            """)
            end = [["refused", {**facts, "retryIn": None}], ["close", facts]]
            self.assertEqual(found, [[False], ["connecting", "closed", *end]])

    def test_too_many_is_later_and_by_the_same_transport(self) -> None:
        """4429 is an answer of the server: WebSockets are not blocked here."""
        found = self.js("""
            world.subscribe({ token: numbered });
            await world.settle();
            world.socket.drop(4429, "too-many");
            await world.advance(5499);
            const early = world.sockets.length;
            await world.advance(1);
            world.socket.say(bye({ reason: "too-many", reconnect_after: 60 }));
            world.socket.drop(4429, "too-many");
            await world.settle();
            return [early, world.sockets.length, world.requests.length, world.taken().at(-1)];
        """)
        self.assertEqual(found[:3], [1, 2, 0])
        self.assertGreaterEqual(found[3][1], 60000)

    def test_a_token_that_ends_is_replaced_at_once(self) -> None:
        """The page hears the reason, and the stream resumes at its cursor."""
        for reason in ("expired", "revoked"):
            found = self.js(f"""
                world.subscribe({{ transports: ["websocket"], token: numbered }});
                await world.settle();
                world.socket.say(open("e.1"), event("e.2"));
                world.socket.say(bye({{ reason: "{reason}", reconnect_after: 0 }}));
                world.socket.drop(4401, "{reason}");
                await world.settle();
                return [asked, world.socket.url.split("?")[1], world.taken()];
            """)
            said = ["bye", {"reason": reason, "reconnect_after": 0}]
            log = ["connecting", "open", "e.2", said, "connecting"]
            self.assertEqual(found, [[False, True], "after=e.2", log])

    def test_a_stream_and_a_poll_that_end_do_the_same(self) -> None:
        """They have no close code: plumber.bye says it."""
        found = self.js("""
            const end = bye({ reason: "expired", reconnect_after: 0 });
            world.subscribe({ transports: ["sse"], token: numbered });
            await world.settle();
            world.request.stream()(record(open("e.1")) + record({ ...end, cursor: "" }));
            await world.advance(45000);
            world.subscribe({ transports: ["longpoll"], token: numbered });
            await world.settle();
            world.request.answer(JSON.stringify({ events: [end], cursor: "e.1" }));
            await world.settle();
            const words = ({ url, headers }) => [url.split("?")[1] ?? null, headers.Authorization];
            return world.requests.map(words);
        """)
        self.assertEqual(
            found,
            [
                [None, "Bearer t1"],
                ["after=e.1", "Bearer t2"],
                ["wait=0", "Bearer t3"],
                ["wait=0&after=e.1", "Bearer t4"],
            ],
        )

    def test_connections_that_never_last_are_no_loop(self) -> None:
        """A server that accepts each token and ends each connection is asked ever more rarely."""
        waits = self.js("""
            const waits = [];
            const note = ({ state, retryIn }) => state === "waiting" && waits.push(retryIn);
            const subscription = world.subscribe({ transports: ["websocket"], token: numbered });
            subscription.on("state", note);
            await world.settle();
            for (let i = 0; i < 5; i++) {
              world.socket.say(open("e.1"));
              world.socket.drop(4401, "expired");
              await world.advance(waits.at(-1) ?? 0);
            }
            return waits;
        """)
        self.assertEqual(waits, [1000, 2000, 4000, 8000])
