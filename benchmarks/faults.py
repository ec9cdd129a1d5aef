"""
What faults do to a cluster, and what it costs: ``python benchmarks/faults.py --seed 1``.

Four instances on one MongoDB are under load from publishers that repeat a POST until it is
accepted, and from subscribers of every transport that resume with their cursors.  Each fault is
injected several times at random moments.  In the end every subscriber must have every accepted
event once and in order; otherwise the command ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import react

from asyncplumber.core.hub import Hub
from asyncplumber.event import Draft, Instance
from asyncplumber.interfaces import IStore
from asyncplumber.stores import open_store
from asyncplumber.stores.retention import Retention
from benchmarks import machine
from harness.clients import TRANSPORTS, HttpConnection, WebSocket, connect, sleep
from harness.cluster import Cluster, TcpProxy, Traffic, until
from harness.replica_set import ReplicaSet

ACCOUNTS = ("a", "b", "c")
Fault = Callable[["Trial", random.Random], Awaitable[None]]


class Trial:
    """A cluster whose instances reach each other through proxies that can be cut, under load."""

    def __init__(self, length: int, skews: tuple[float, ...] = (), uri: str = "") -> None:
        self.cluster = Cluster(4, "--history-length", str(length), skews=skews, uri=uri)
        self.traffic = Traffic()
        self.wires: list[TcpProxy] = []

    async def begin(self, round: str) -> None:
        """Start everything that is down, connect the subscribers, and start the publishers."""
        if not self.wires:
            self.wires = [await TcpProxy().open() for _ in self.cluster.nodes]
            for wire, node in zip(self.wires, self.cluster.nodes, strict=True):
                wire.target = node.port
                node.add_options("--advertise-url", f"http://127.0.0.1:{wire.port}")
        await self.cluster.up()
        self.traffic = Traffic()
        for account in ACCOUNTS:
            await self.traffic.connect(self.cluster.ports, f"{round}-{account}", TRANSPORTS)
            for at in range(2):
                ports = self.cluster.ports[at:] + self.cluster.ports[:at]
                self.traffic.publisher(ports, f"{round}-{account}").run(pause=0.005)

    async def end(self) -> None:
        """
        Stop the publishers and wait until everything is delivered.

        Raises:
            AssertionError: something is missing, doubled or out of order.
        """
        for wire in self.wires:
            if not wire.whole:
                wire.mend()
        await self.cluster.up()
        await gatherResults([publisher.stop() for publisher in self.traffic.publishers])
        await self.traffic.settled(30)

    async def down(self) -> None:
        await self.traffic.disconnect()
        for wire in self.wires:
            await wire.close()
        self.cluster.down()


async def nothing(trial: Trial, dice: random.Random) -> None:
    """Let a second pass."""
    await sleep(1)


async def kill_instance(trial: Trial, dice: random.Random) -> None:
    """Kill an instance (SIGKILL), and start it some time later."""
    node = dice.choice(trial.cluster.nodes)
    node.kill()
    await sleep(dice.uniform(0, 4))
    await node.start()


async def kill_database(trial: Trial, dice: random.Random) -> None:
    """Kill mongod (SIGKILL), and start it again with what is on disk."""
    trial.cluster.mongod.kill()
    await sleep(dice.uniform(0, 3))
    trial.cluster.mongod.restart()


async def hang(trial: Trial, dice: random.Random) -> None:
    """Stop an instance (SIGSTOP), and let it continue (SIGCONT)."""
    node = dice.choice(trial.cluster.nodes)
    node.signal(signal.SIGSTOP)
    try:
        await sleep(dice.uniform(0.5, 6))
    finally:
        node.signal(signal.SIGCONT)


async def hang_database(trial: Trial, dice: random.Random) -> None:
    """Do the same to mongod."""
    trial.cluster.mongod.pause()
    try:
        await sleep(dice.uniform(0.5, 4))
    finally:
        trial.cluster.mongod.resume()


async def part(trial: Trial, dice: random.Random) -> None:
    """Drop what the others send to two of the instances."""
    wires = dice.sample(trial.wires, 2)
    for wire in wires:
        wire.cut()
    await sleep(dice.uniform(1, 6))
    for wire in wires:
        wire.mend()


async def restart(trial: Trial, dice: random.Random) -> None:
    """Restart all instances, one after the other (SIGTERM)."""
    for node in trial.cluster.nodes:
        await node.stop()
        await node.start()


async def lose_hooks(trial: Trial, dice: random.Random) -> None:
    """Delete all hooks, without telling the instances."""
    collection = trial.cluster.collection("hooks")
    try:
        collection.delete_many({})
    finally:
        collection.database.client.close()
    await sleep(1)


async def step_clock(trial: Trial, dice: random.Random) -> None:
    """Set the clock of an instance back or forward by up to an hour."""
    node = dice.choice(trial.cluster.nodes)
    node.step(dice.choice((-1, 1)) * dice.uniform(60, 3600))
    await sleep(dice.uniform(1, 4))


async def stall(trial: Trial, dice: random.Random) -> None:
    """Stop reading at three subscribers while 8 MB are sent, then continue."""
    lazy = [each for each in trial.traffic.ledger.subscribers if isinstance(each, WebSocket)]
    for each in dice.sample(lazy, 3):
        if each.connection is not None:
            each.connection.pauseProducing()
    publisher = trial.traffic.publisher(trial.cluster.ports, lazy[0].account)
    await publisher.run(20, data="x" * 400_000)
    for each in lazy:
        if each.connection is not None:
            each.connection.resumeProducing()


async def replay_batches(trial: Trial, dice: random.Random) -> None:
    """Send old batches again, to all instances, in any order."""
    rows = trial.cluster.rows("events", account=trial.traffic.publishers[0].account)
    names = ("account", "epoch", "seq", "id", "type", "time", "content_type")
    rows = [row for row in rows if len(row["payload"]) < 1000]
    lines = [
        json.dumps([*[row[name] for name in names], row["payload"].decode()]).encode()
        for row in rows
    ]
    for node, wire in zip(trial.cluster.nodes, trial.wires, strict=True):
        (instance,) = [
            row for row in trial.cluster.rows("instances") if f":{wire.port}/" in row["url"]
        ]
        line = await connect(node.port, HttpConnection())
        for _ in range(5):
            body = b"\n".join(dice.sample(lines, min(50, len(lines))))
            signature = trial.cluster.signed(instance, body, node.skew)
            answer = await line.request(
                "POST", f"/instances/{instance['_id']}/events", body, signature
            )
            assert answer.status == 200, answer
        line.close()
    await sleep(0.5)


class _GivesUp(Protocol):
    """A client that requests a replay and reads nothing."""

    def connectionMade(self) -> None:
        self.transport.write(self.factory.request)


async def give_up_replays(trial: Trial, dice: random.Random) -> None:
    """
    Let 1,500 clients request a replay and give up while mongod hangs.

    Other subscribers reconnect meanwhile.
    """
    node = trial.cluster.nodes[0]  # always the same: what one round leaves behind adds up
    factory = Factory.forProtocol(_GivesUp)
    factory.noisy = False
    here = trial.traffic.ledger.subscribers[0]
    await until(lambda: bool(here.events), "an event")
    path = f"/events/{here.account}?after={here.cursor.partition('.')[0]}.0"
    factory.request = (  # type: ignore[attr-defined]
        f"GET {path} HTTP/1.1\r\nHost: plumber\r\nAccept: text/event-stream\r\n\r\n".encode()
    )
    endpoint = HostnameEndpoint(reactor, "127.0.0.1", node.port)
    trial.cluster.mongod.pause()
    try:
        asked = await DeferredList(
            [endpoint.connect(factory) for _ in range(1500)], consumeErrors=True
        )
        await sleep(dice.uniform(0.5, 1))
        for connected, client in asked:
            if connected:
                client.transport.abortConnection()  # type: ignore[attr-defined]
        for each in trial.traffic.ledger.subscribers:
            each.disconnect()
        await sleep(dice.uniform(0.5, 1))
    finally:
        trial.cluster.mongod.resume()
    await sleep(1)
    if errors := node.output.count("RecursionError"):
        raise AssertionError(f"the instance logged RecursionError {errors} times")


FAULTS: dict[str, Fault] = {
    "none": nothing,
    "kill -9 of an instance": kill_instance,
    "kill -9 of mongod, and its return": kill_database,
    "an instance hangs (SIGSTOP)": hang,
    "mongod hangs (SIGSTOP)": hang_database,
    "two instances cut off from the others": part,
    "rolling restart of all four": restart,
    "all hooks deleted by a stranger": lose_hooks,
    "old batches again, shuffled": replay_batches,
    "three readers stall": stall,
    "1,500 replays given up while mongod hangs": give_up_replays,
    "the clock of an instance is set": step_clock,
}


def header() -> None:
    """Print the heading of the table."""
    columns = ("accepted", "owed", "delivered", "duplicates", "delay, s")
    print(f"{'fault':<42}{'times':>6}" + "".join(f"{column:>11}" for column in columns))


def row(name: str, times: int, traffic: Traffic) -> None:
    """Print a row of the table."""
    ledger = traffic.ledger
    owed = sum(len(ledger.accepted.get(each.account, ())) for each in ledger.subscribers)
    cells = (
        ledger.events,
        owed,
        ledger.deliveries,
        ledger.duplicates,
        f"{max(ledger.delays, default=0):.2f}",
    )
    print(f"{name:<42}{times:>6}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


async def fault_table(dice: random.Random, rounds: int, mixed: int, only: str) -> None:
    """Print a row for each fault, then one for all of them mixed.  Two clocks are wrong."""
    trial = Trial(10**6, skews=(-300.0, 300.0, 0.0, 0.0))
    try:
        for number, (name, fault) in enumerate(FAULTS.items()):
            if only not in name:
                continue
            await trial.begin(f"f{number}")
            for _ in range(rounds):
                await sleep(dice.uniform(0.2, 1))
                await fault(trial, dice)
                await trial.cluster.up()
            await trial.end()
            row(name, rounds, trial.traffic)
            await trial.traffic.disconnect()
        if only:
            return
        await trial.begin("mixed")
        for _ in range(mixed):
            await sleep(dice.uniform(0, 1))
            await dice.choice(list(FAULTS.values()))(trial, dice)
            await trial.cluster.up()
        await trial.end()
        row("all of these in random order", mixed, trial.traffic)
    finally:
        await trial.down()


async def replace_primary(set: ReplicaSet, trial: Trial, dice: random.Random) -> None:
    """
    Let another member become primary while an instance sees only the old one.

    The old primary hangs during the election, and continues while it is cut off.
    """
    old = await set.primary()
    others = [member for member in set.members if member is not old]
    pids = [member.pid for member in others]
    victim = dice.choice(trial.cluster.nodes)
    set.links.known = [*set.pids, *[node.pid for node in trial.cluster.nodes]]
    old.pause()
    try:
        set.links.cut([victim.pid], pids)
        set.links.cut(
            [old.pid], [*pids, *[node.pid for node in trial.cluster.nodes if node is not victim]]
        )
        await set.elect(*others)
        await sleep(dice.uniform(1, 3))
    finally:
        old.resume()
    await sleep(dice.uniform(4, 8))  # it compares its positions every three seconds
    set.links.restore()
    await set.settled()


async def primary_table(dice: random.Random, rounds: int) -> None:
    """Print the row of the fault that needs a replica set.  No subscriber may get a gap."""
    set = await ReplicaSet().start()
    trial = Trial(10**6, uri=set.uri)
    try:
        await trial.begin("p")
        for _ in range(rounds):
            await sleep(dice.uniform(0.2, 1))
            await replace_primary(set, trial, dice)
        await trial.end()
        row("an old primary, and who sees only it", rounds, trial.traffic)
        doubts = sum(node.output.count("cannot catch up yet") for node in trial.cluster.nodes)
        print(
            f"  comparisons with the old primary that were not believed: {doubts} "
            "(a gap would have ended this)"
        )
    finally:
        await trial.down()
        await set.stop()


async def relay(batch: int = 500, batches: int = 40) -> None:
    """Measure events per second between two instances, and the delay of a single event."""
    cluster = Cluster(2, "--history-length", "100000")
    await cluster.up()
    traffic = Traffic()
    try:
        near, far = await traffic.connect(cluster.ports, "relay", [WebSocket])
        publisher = traffic.publisher(cluster.ports[:1], "relay")
        await publisher.run(50)
        await traffic.settled()
        added = []
        for _ in range(300):
            before = len(near.events)
            arrived: dict[Any, float] = {}
            receipt = Deferred.fromCoroutine(publisher.post())
            while len(arrived) < 2:
                for each in (near, far):
                    if len(each.events) > before:
                        arrived.setdefault(each, time.monotonic())
                await sleep(0)
            await receipt
            added.append(1000 * (arrived[far] - arrived[near]))
        line = await connect(cluster.ports[0], HttpConnection())
        body = b"\n".join(
            b'{"n": %d, "of": "a result of about a hundred bytes", "and": "some more of it"}' % n
            for n in range(batch)
        )
        goal = len(far.events) + batch * batches
        began = time.monotonic()
        for _ in range(batches):
            await line.request(
                "POST", "/hooks/relay", body, {"Content-Type": "application/x-ndjson"}
            )
        await until(lambda: len(far.events) >= goal, "all relayed", 60)
        spent = time.monotonic() - began
        line.close()
        print(
            f"relay between two instances: {batch * batches / spent:,.0f} events/s, "
            "accepted, kept, and delivered at both"
        )
        print(
            f"  added by the relay to one event: median {statistics.median(added):.2f} ms, "
            f"99 % {sorted(added)[-4]:.2f} ms"
        )
    finally:
        await traffic.disconnect()
        cluster.down()


async def timed(
    what: str, times: int, work: Callable[[], Awaitable[Any]], others: list[int]
) -> None:
    """Measure calls, one after the other.  ``others`` are processes that work for them."""
    spent, ours, theirs = [], time.process_time(), machine.cpu(others)
    for _ in range(times):
        began = time.perf_counter()
        await work()
        spent.append(1000 * (time.perf_counter() - began))
    here, there = (
        1000 * (time.process_time() - ours) / times,
        1000 * (machine.cpu(others) - theirs) / times,
    )
    wall = f"median {statistics.median(spent):.2f} ms, most {max(spent):.2f}"
    print(f"  {what}: {wall}; CPU {here:.2f} ms here, {there:.2f} in mongod")


async def upkeep(reactor: Any, hooks: int, accounts: int) -> None:
    """Measure what an instance does every few seconds: renew its lease, compare positions."""
    cluster = Cluster(0)
    await cluster.up()
    folder = tempfile.TemporaryDirectory()
    try:
        for name, uri in (
            ("MongoDB", cluster.uri),
            ("SQLite", f"sqlite:{folder.name}/upkeep.sqlite"),
        ):
            print(f"{name}, an instance with {hooks:,} hooks and {accounts:,} open accounts:")
            store = open_store(uri, Retention(), reactor)
            await store.start()
            names = [f"account-{number}" for number in range(hooks)]
            await leases(store.registry, names, [cluster.mongod.pid])
            await comparison(store, names[:accounts], [cluster.mongod.pid], reactor)
            await store.stop()
    finally:
        cluster.down()
        folder.cleanup()


async def leases(registry: Any, names: list[str], pids: list[int]) -> None:
    """Measure the registry."""
    instance = await registry.add_instance(Instance("bench", "http://127.0.0.1:1/instances/bench"))
    began = time.perf_counter()
    for start in range(0, len(names), 1000):
        await registry.register(instance, names[start : start + 1000])
    print(f"  putting all hooks in, 1,000 a call: {time.perf_counter() - began:.1f} s")
    await timed("renewing the lease", 50, lambda: registry.renew(instance), pids)
    await timed("sweeping the registry", 5, registry.sweep, pids)
    await timed("who wants one account", 200, lambda: registry.instances([names[0]]), pids)


async def comparison(store: IStore, names: list[str], pids: list[int], reactor: Any) -> None:
    """Measure the history."""
    drafts = [
        Draft(each, "id", "id", "result", "2012-09-28T00:00:00Z", "application/json", b'"data":1')
        for each in names
    ]
    for start in range(0, len(names), 1000):
        await store.append(drafts[start : start + 1000])
    hub = Hub(store.history, reactor, linger=600.0)
    for each in names:
        await hub.admit(each)
    await timed(f"hub.check of {len(names):,} accounts", 10, hub.check, pids)
    hub.stop()


async def run(reactor: Any, options: argparse.Namespace) -> None:
    """Run all parts, or one."""
    print(machine.description())
    if not options.only or options.only == "faults":
        print(f"seed {options.seed}")
        header()
        await fault_table(random.Random(options.seed), options.rounds, options.mixed, options.fault)
    if not options.only or options.only == "primaries":
        header()
        await primary_table(random.Random(options.seed), options.rounds)
    if not options.only or options.only == "relay":
        await relay()
    if not options.only or options.only == "upkeep":
        await upkeep(reactor, options.hooks, options.accounts)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        default=random.SystemRandom().randrange(10**6),
        help="of the random moments",
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that each fault is injected")
    parser.add_argument(
        "--mixed", type=int, default=20, help="faults of the last line, where they are mixed"
    )
    parser.add_argument(
        "--fault", default="", help="inject only the faults whose name has this in it"
    )
    parser.add_argument("--hooks", type=int, default=100_000)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--only", choices=["faults", "primaries", "relay", "upkeep"])
    options = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(run(reactor, options)))


if __name__ == "__main__":
    main()
