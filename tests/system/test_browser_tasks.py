"""The tasks of asyncplumber.js in a real Chromium, in a world of fakes and without a network."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from harness.browser import in_fake_world, missing

WORLD = """
    const world = new World(), { open, event, record, row, tasks, news } = World;
    const follow = (task) => {
      const log = [];
      const show = ({ state, progress, done, late }) => [state, progress, done, late];
      task.on("change", (now) => log.push(show(now)));
      task.on("end", () => log.push("end"));
      task.on("refused", ({ type, status }) => log.push(["refused", type, status]));
      return log;
    };
    const settled = async (promise) => {
      let found = ["pending"];
      promise.then(
        (value) => { found = ["value", value]; },
        ({ state, type, message }) => { found = ["error", state, type, message]; },
      );
      await world.settle();
      return found;
    };
    const connect = async (transport = "websocket", more = {}) => {
      const plumber = world.subscribe({ transports: [transport], ...more });
      await world.settle();
      return plumber;
    };
"""


class TaskTests(SynchronousTestCase):
    """`start` and `task`, with fake sockets, requests, clock and randomness."""

    skip = missing()

    def js(self, script: str) -> Any:
        return in_fake_world(WORLD + script)()

    def test_a_task_goes_from_its_start_to_its_result(self) -> None:
        """Over the WebSocket; it ends once, and the promise has the result."""
        asked, log, result = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            const task = plumber.start("sum", { n: [3, 4] });
            const log = follow(task);
            const asked = world.socket.asked();
            const early = task.result;
            world.socket.say(news("e.2", "submitted", "r1"));
            world.socket.reply(1, 202, row("sum", "r1", "submitted"));
            world.socket.say(news("e.3", "started", "r1"), news("e.4", "progress", "r1", 5));
            world.socket.say(news("e.5", "completed", "r1", { total: 7 }));
            world.socket.say(news("e.6", "progress", "r1", 6), news("e.7", "failed", "r1"));
            return [asked, log, [await settled(early), await settled(task.result)]];
        """)
        self.assertEqual(
            asked, [{"id": 1, "method": "start", "task": "sum", "input": {"n": [3, 4]}}]
        )
        self.assertEqual(
            log,
            [
                ["submitted", None, False, False],
                ["running", None, False, False],
                ["running", 5, False, False],
                ["completed", 5, True, False],
                "end",
            ],
        )
        self.assertEqual(result, [["value", {"total": 7}]] * 2)

    def test_a_late_comer_begins_with_the_snapshot(self) -> None:
        """What it includes is dropped from the events; what is not in it is asked for."""
        urls, log, asked = self.js("""
            const plumber = world.subscribe({ transports: ["websocket"], after: "e.1" });
            const task = plumber.task("sum"), other = plumber.task("other");
            const log = follow(task);
            await world.settle();
            world.socket.say(open("e.1"));
            const live = row("sum", "r1", "running", { progress: 5, cursor: "e.5" });
            world.socket.say(tasks("e.6", live));
            world.socket.say(news("e.2", "submitted", "r1"), news("e.4", "progress", "r1", 4));
            world.socket.say(news("e.6", "progress", "r1", 5), news("e.7", "progress", "r1", 7));
            return [world.sockets.map(({ url }) => url), log, world.socket.asked()];
        """)
        self.assertEqual(urls, ["ws://server.test/events/a%2Fb?after=e.1&tasks="])
        self.assertEqual(log, [["running", 5, False, False], ["running", 7, False, False]])
        self.assertEqual(asked, [{"id": 1, "method": "get", "task": "other"}])

    def test_each_end_has_its_error(self) -> None:
        """The promise is rejected with the state, the type and the message."""
        found = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            const task = plumber.task("sum");
            world.socket.reply(1, 404, { error: { code: "unknown-task", message: "none" } });
            const found = [];
            let cursor = 1;
            for (const word of ["failed", "canceled", "lost"]) {
              const error = { type: "T", message: `was ${word}` };
              world.socket.say(news(`e.${++cursor}`, "submitted", word));
              world.socket.say(news(`e.${++cursor}`, word, word, null, { error }));
              found.push([await settled(task.result), task.error]);
            }
            return found;
        """)
        self.assertEqual(
            found,
            [
                [["error", word, "T", f"was {word}"], {"type": "T", "message": f"was {word}"}]
                for word in ("failed", "canceled", "lost")
            ],
        )

    def test_a_lost_task_may_complete_late(self) -> None:
        """That is a change and no second end; the result is there."""
        log, found = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            const task = plumber.task("sum"), log = follow(task);
            world.socket.say(news("e.2", "started", "r1"), news("e.3", "lost", "r1"));
            const lost = await settled(task.result);
            world.socket.say(news("e.4", "completed", "r1", 7, { late: true }));
            world.socket.say(news("e.5", "completed", "r1", 7, { late: true }));
            return [log, [lost, await settled(task.result)]];
        """)
        self.assertEqual(
            log[-3:], [["lost", None, True, False], "end", ["completed", None, True, True]]
        )
        self.assertEqual(found, [["error", "lost", "lost", "lost"], ["value", 7]])

    def test_a_newer_run_takes_its_place(self) -> None:
        """What comes of the older one is dropped."""
        log, found = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            const task = plumber.task("sum"), log = follow(task);
            world.socket.say(news("e.2", "progress", "r1", 1), news("e.3", "submitted", "r2"));
            world.socket.say(news("e.4", "completed", "r1", "old"));
            world.socket.reply(1, 200, row("sum", "r1", "completed", { result: "old" }));
            world.socket.say(news("e.5", "completed", "r2", "new"));
            return [log, await settled(task.result)];
        """)
        self.assertEqual([entry[0] for entry in log[:-1]], ["running", "submitted", "completed"])
        self.assertEqual(found, ["value", "new"])

    def test_a_start_survives_a_reconnect(self) -> None:
        """It is sent again, and takes the result of its first try for its own."""
        asked, found, log = self.js("""
            const plumber = await connect();
            const task = plumber.start("sum", 3), log = follow(task);
            const none = world.sockets[0].asked();
            world.socket.say(open("e.1"));
            const first = world.socket.asked();
            world.socket.drop(1006);
            await world.advance(500);
            world.socket.say(open("e.1"), tasks("e.1"));
            const second = world.socket.asked();
            world.socket.reply(1, 200, row("sum", "r1", "completed", { result: 9 }));
            await world.settle();
            world.socket.say(news("e.2", "submitted", "r1"), news("e.3", "completed", "r1", 9));
            return [[none, first, second], await settled(task.result), log];
        """)
        none, (first,), (second,) = asked
        self.assertEqual(none, [])
        self.assertEqual(first, {"id": 1, "method": "start", "task": "sum", "input": 3})
        self.assertGreaterEqual(second.pop("max_age"), 0)
        self.assertEqual(second, first)
        self.assertEqual((found, log), (["value", 9], [["completed", None, True, False], "end"]))

    def test_what_is_refused_is_not_begun(self) -> None:
        """With 422 the live task is followed, and its result is not that of the start."""
        found = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            const task = plumber.start("sum", 3), log = follow(task), mine = task.result;
            const error = { code: "other-input", message: "another input" };
            world.socket.reply(1, 422, { error, task: row("sum", "r1", "running") });
            const refused = await settled(mine), live = await settled(task.result);
            world.socket.say(news("e.2", "completed", "r1", 9));
            return [refused, live, await settled(task.result), log];
        """)
        self.assertEqual(found[0], ["error", "refused", "other-input", "another input"])
        self.assertEqual(found[1:3], [["pending"], ["value", 9]])
        self.assertIn(["refused", "other-input", 422], found[3])

    def test_a_task_can_be_started_again(self) -> None:
        """The result of this start is not that of the one before; each run has one end."""
        found = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            const task = plumber.start("sum", 1), log = follow(task), first = task.result;
            world.socket.reply(1, 202, row("sum", "r1", "submitted"));
            await world.settle();
            world.socket.say(news("e.2", "completed", "r1", 1));
            const second = plumber.start("sum", 2).result;
            const states = [await settled(first), await settled(second), task.state];
            world.socket.say(news("e.3", "submitted", "r2"));
            world.socket.reply(2, 202, row("sum", "r2", "submitted"));
            await world.settle();
            world.socket.say(news("e.4", "completed", "r2", 2));
            return [states, await settled(second), log];
        """)
        self.assertEqual(found[0], [["value", 1], ["pending"], "completed"])
        self.assertEqual(found[1], ["value", 2])
        ends = [entry if entry == "end" else entry[0] for entry in found[2]]
        once = ["submitted", "completed", "end"]
        self.assertEqual(ends, once * 2)

    def test_what_may_pass_is_asked_again(self) -> None:
        """As late as the server says."""
        found = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            const task = plumber.start("sum", 3);
            world.socket.asked();
            world.socket.reply(1, 503, { error: { code: "unavailable", retry_after: 2 } });
            await world.advance(2400);
            const early = world.socket.asked().length;
            await world.advance(200);
            const [{ id, method }] = world.socket.asked();
            world.socket.reply(id, 202, row("sum", "r1", "submitted"));
            await world.settle();
            return [early, method, task.state];
        """)
        self.assertEqual(found, [0, "start", "submitted"])

    def test_it_is_canceled(self) -> None:
        """The request is taken, or refused; the end comes as an event."""
        found = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            const task = plumber.task("sum"), log = follow(task);
            world.socket.reply(1, 200, row("sum", "r1", "running", { cursor: "e.1" }));
            world.socket.asked();
            const cancel = task.cancel();
            const [message] = world.socket.asked();
            const row1 = row("sum", "r1", "running", { cancel_requested: true, cursor: "e.1" });
            world.socket.reply(2, 202, row1);
            await cancel;
            const asked = task.cancelRequested;
            world.socket.say(news("e.2", "canceled", "r1", null, { error: { type: "canceled" } }));
            const late = task.cancel();
            world.socket.reply(3, 409, { error: { code: "ended", message: "it has ended" } });
            return [message, asked, task.state, await settled(late), log.length];
        """)
        self.assertEqual(
            found,
            [
                {"id": 2, "method": "cancel", "task": "sum"},
                True,
                "canceled",
                ["error", "refused", "ended", "it has ended"],
                4,
            ],
        )

    def test_without_a_websocket_it_is_asked_by_requests(self) -> None:
        """PUT, GET and POST, with the token; the events come by the stream."""
        requests, found = self.js("""
            const plumber = await connect("sse", { token: "secret" });
            const say = world.request.stream();
            await world.settle();
            say(record(open("e.1")));
            await world.settle();
            const task = plumber.start("a b/c", [3]), log = follow(task);
            await world.settle();
            const put = world.request;
            put.answer(JSON.stringify(row("a b/c", "r1", "submitted")), {}, 202);
            await world.settle();
            const cancel = task.cancel();
            await world.settle();
            const post = world.request;
            const asked = row("a b/c", "r1", "running", { cancel_requested: true });
            post.answer(JSON.stringify(asked), {}, 202);
            await cancel;
            const other = plumber.task("sum");
            await world.settle();
            const get = world.request;
            get.answer(JSON.stringify(row("sum", "r2", "completed")), {});
            await world.settle();
            const result = world.request;
            result.answer('{"large": 1}', { "Content-Type": "application/json" });
            const value = await settled(other.result);
            const show = ({ url, method, headers, body }) => [method, url, headers, body];
            return [[put, post, get, result].map(show), [task.state, task.cancelRequested, value]];
        """)
        bearer = {"Authorization": "Bearer secret"}
        place = "http://server.test/tasks/a%2Fb/"
        put = {"Prefer": "respond-async", "Content-Type": "application/json", **bearer}
        self.assertEqual(
            requests,
            [
                ["PUT", place + "a%20b%2Fc", put, "[3]"],
                ["POST", place + "a%20b%2Fc/cancel", bearer, None],
                ["GET", place + "sum", bearer, None],
                ["GET", place + "sum/result", bearer, None],
            ],
        )
        self.assertEqual(found, ["running", True, ["value", {"large": 1}]])

    def test_a_long_poll_asks_for_the_tasks_once_and_after_a_gap(self) -> None:
        """And a refused request is refused there, too."""
        urls, log, refused = self.js("""
            const plumber = world.subscribe({ transports: ["longpoll"], after: "e.1" });
            const task = plumber.task("sum"), log = follow(task);
            await world.settle();
            const answer = async (cursor, ...events) => {
              world.request.answer(JSON.stringify({ events, cursor }));
              await world.settle();
            };
            await answer("e.1", tasks("e.1", row("sum", "r1", "running")));
            await answer("e.2", news("e.2", "progress", "r1", 2));
            const gap = { type: "plumber.gap", cursor: "e.9", data: { from: "e.2", to: "e.9" } };
            await answer("e.9", gap);
            await answer("e.9", tasks("e.9", row("sum", "r1", "running", { progress: 8 })));
            const urls = world.requests.map(({ url }) => url.replace(/.*\\?/, ""));
            const start = plumber.start("other");
            await world.settle();
            const error = { code: "insufficient-scope", message: "no" };
            world.request.answer(JSON.stringify({ error }), {}, 403);
            return [urls, log, await settled(start.result)];
        """)
        self.assertEqual(
            urls,
            [
                "wait=0&after=e.1&tasks=",
                "wait=25&after=e.1",
                "wait=25&after=e.2",
                "wait=0&after=e.9&tasks=",
                "wait=25&after=e.9",
            ],
        )
        self.assertEqual([entry[1] for entry in log], [None, 2, 8])
        self.assertEqual(refused, ["error", "refused", "insufficient-scope", "no"])

    def test_a_large_input_goes_by_a_request(self) -> None:
        """A WebSocket that refuses a message closes, and would take the stream with it."""
        found = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            plumber.start("sum", "x".repeat(20000));
            await world.settle();
            const { method, body } = world.request;
            return [world.socket.asked(), method, body.length];
        """)
        self.assertEqual(found, [[], "PUT", 20002])

    def test_the_tasks_of_the_account_can_be_listed(self) -> None:
        """By an option, for pages that do not know the keys."""
        found = self.js("""
            const plumber = world.subscribe({ transports: ["websocket"], tasks: true });
            const lists = [];
            const keys = (rows) => rows.map(({ task }) => task);
            plumber.on("tasks", ({ tasks, more }) => lists.push([keys(tasks), more]));
            await world.settle();
            world.socket.say(open("e.1"), tasks("e.1", row("a", "r1", "running")));
            return [world.socket.url, lists, plumber.task("a") === plumber.task("a")];
        """)
        self.assertEqual(found, ["ws://server.test/events/a%2Fb?tasks=", [[["a"], False]], True])

    def test_nobody_waits_for_the_end_of_a_run_that_was_missed(self) -> None:
        """A newer run has begun: its result is not that of the former one."""
        found = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            const task = plumber.task("sum");
            world.socket.say(news("e.2", "started", "r1"));
            const former = task.result;
            world.socket.say(news("e.9", "started", "r2"), news("e.10", "completed", "r2", 7));
            return [await settled(former), await settled(task.result)];
        """)
        missed = ["error", "lost", "superseded", "a newer run has begun"]
        self.assertEqual(found, [missed, ["value", 7]])

    def test_nobody_waits_for_a_result_when_the_client_is_closed(self) -> None:
        """The task may go on; a result that is known stays."""
        found = self.js("""
            const plumber = await connect();
            world.socket.say(open("e.1"));
            const started = plumber.start("sum", 1), seen = plumber.task("other");
            world.socket.reply(1, 202, row("sum", "r1", "submitted"));
            const ended = plumber.task("ended");
            world.socket.say(news("e.2", "submitted", "r2", null, { task: "ended" }));
            world.socket.say(news("e.3", "completed", "r2", 7, { task: "ended" }));
            const waiting = [started.result, seen.result, ended.result];
            plumber.close();
            const found = await Promise.all(waiting.map(settled));
            return [found, await settled(plumber.task("late").result), started.state];
        """)
        closed = ["error", "closed", "closed"]
        self.assertEqual(
            found,
            [
                [[*closed, "closed here"], [*closed, "closed here"], ["value", 7]],
                [*closed, "the connection is closed"],
                "submitted",
            ],
        )

    def test_a_closed_client_starts_nothing(self) -> None:
        """What it has asked and not heard is rejected."""
        found = self.js("""
            const plumber = await connect();
            const before = plumber.start("sum", 1);
            const mine = before.result;
            plumber.close();
            return [await settled(mine), await settled(plumber.start("sum", 2).result)];
        """)
        self.assertEqual([each[:3] for each in found], [["error", "refused", "closed"]] * 2)
