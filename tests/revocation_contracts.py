"""What a store promises about revocations and spent tickets."""

from __future__ import annotations

import math
from typing import Any

from twisted.internet.defer import gatherResults
from zope.interface.verify import verifyObject

from asyncplumber.errors import TooManyRequests
from asyncplumber.interfaces import MAX_REVOCATIONS, IRevocations, Revocation, RevocationKind
from tests.contracts import ODD_ACCOUNTS, StoreContract

JTI, SUB, ACCOUNT = RevocationKind.JTI, RevocationKind.SUB, RevocationKind.ACCOUNT


class RevocationContract(StoreContract):
    """What `IRevocations` promises."""

    async def setUp(self) -> None:
        await super().setUp()
        self.revocations = self.store.revocations

    def later(self, seconds: float) -> float:
        """Return a time of day in the future; the last whole millisecond before it."""
        return math.floor((self.reactor.seconds() + seconds) * 1000) / 1000

    def row(self, kind: RevocationKind = JTI, value: str = "j", lifetime: float = 60) -> Revocation:
        """Return a revocation of now."""
        before = None if kind is JTI else self.later(0)
        return Revocation(kind, value, before, self.later(lifetime))

    async def all(self, store: Any = None) -> set[Revocation]:
        """Return what a store says is revoked."""
        rows = await (store or self.store).revocations.revocations()
        self.assertEqual(len(rows), len(set(rows)))
        return set(rows)

    async def test_it_provides_the_interface_of_revocations(self) -> None:
        """With the limit that is documented."""
        verifyObject(IRevocations, self.revocations)
        self.assertEqual(self.revocations.limit, MAX_REVOCATIONS)

    async def test_what_is_revoked_is_listed(self) -> None:
        """As it was given, by each kind, and at another instance as well."""
        self.assertEqual(await self.all(), set())
        rows = {self.row(kind) for kind in RevocationKind}
        for row in rows:
            self.assertEqual(await self.revocations.revoke(row), row)
        other = await self.opened()
        self.assertEqual((await self.all(), await self.all(other)), (rows, rows))

    async def test_a_revocation_survives_a_restart(self) -> None:
        """So does the version, which goes on."""
        row = await self.revocations.revoke(self.row())
        version = await self.revocations.version()
        await self.store.stop()
        again = await self.opened()
        self.assertEqual(await self.all(again), {row})
        self.assertEqual(await again.revocations.version(), version)
        await again.revocations.revoke(self.row(SUB))
        self.assertNotEqual(await again.revocations.version(), version)

    async def test_each_revocation_changes_the_version(self) -> None:
        """Also one that was there, or after all have ended; and what is only read changes none."""
        other = (await self.opened()).revocations
        seen = [await self.revocations.version()]
        for lifetime in (60, 60, 120, 1):
            await self.revocations.revoke(self.row(lifetime=lifetime))
            seen.append(await other.version())
        self.reactor.advance(200)
        await other.sweep()
        for _ in range(2):
            await other.revoke(self.row())
            seen.append(await self.revocations.version())
        self.assertEqual(len(set(seen)), len(seen))
        await self.revocations.revocations()
        self.assertEqual(await self.revocations.version(), seen[-1])

    async def test_a_second_revocation_takes_nothing_back(self) -> None:
        """The later time and the later end count, whichever came first."""
        early, late = self.later(-10), self.later(-5)
        soon, later = self.later(60), self.later(90)
        await self.revocations.revoke(Revocation(SUB, "s", late, soon))
        row = await self.revocations.revoke(Revocation(SUB, "s", early, later))
        self.assertEqual(row, Revocation(SUB, "s", late, later))
        await self.revocations.revoke(Revocation(JTI, "s", None, later))
        self.assertEqual(
            await self.revocations.revoke(Revocation(JTI, "s", None, soon)),
            Revocation(JTI, "s", None, later),
        )
        self.assertEqual(len(await self.all()), 2)

    async def test_a_revocation_ends(self) -> None:
        """At its time, swept or not; a later one of the same name owes it nothing."""
        await self.revocations.revoke(Revocation(SUB, "s", self.later(50), self.later(10)))
        kept = await self.revocations.revoke(self.row(value="kept", lifetime=60))
        self.reactor.advance(9)
        self.assertEqual(len(await self.all()), 2)
        self.reactor.advance(1)
        self.assertEqual(await self.all(), {kept})
        new = Revocation(SUB, "s", self.later(0), self.later(5))
        self.assertEqual(await self.revocations.revoke(new), new)
        self.assertEqual(await self.all(), {kept, new})
        self.reactor.advance(6)
        self.assertEqual([await self.revocations.sweep() for _ in range(2)], [1, 0])
        self.assertEqual(await self.all(), {kept})

    async def test_odd_values_are_kept_apart(self) -> None:
        """By kind, too: a subject may be called as an account is."""
        rows = {self.row(kind, value) for kind in RevocationKind for value in ODD_ACCOUNTS}
        for row in rows:
            await self.revocations.revoke(row)
        self.assertEqual(await self.all(), rows)

    async def test_there_is_a_limit(self) -> None:
        """The last one that fits is taken.  Ended rows make room, and known ones need none."""
        self.revocations.limit = 3
        await self.revocations.revoke(self.row(value="short", lifetime=5))
        for value in ("1", "2"):
            await self.revocations.revoke(self.row(value=value))
        version = await self.revocations.version()
        with self.assertRaisesRegex(TooManyRequests, "3 revocations"):
            await self.revocations.revoke(self.row(value="3"))
        self.assertEqual(await self.revocations.version(), version)
        self.assertEqual(len(await self.all()), 3)
        await self.revocations.revoke(self.row(value="1", lifetime=90))
        self.reactor.advance(6)
        await self.revocations.revoke(self.row(value="3"))
        self.assertEqual({row.value for row in await self.all()}, {"1", "2", "3"})

    async def test_instances_that_revoke_together_lose_nothing(self) -> None:
        """Neither different rows nor the same one."""
        stores = [self.store, await self.opened()]
        same = Revocation(SUB, "same", self.later(0), self.later(60))
        rows = [same, *[self.row(value=f"{n}") for n in range(5)]]
        await gatherResults([store.revocations.revoke(row) for row in rows for store in stores])
        self.assertEqual(await self.all(), set(rows))

    async def test_a_ticket_is_spent_once(self) -> None:
        """At one instance or another, before a restart or after it; others are not concerned."""
        other = await self.opened()
        ends = self.later(30)
        self.assertTrue(await self.revocations.spend("t", ends))
        self.assertFalse(await self.revocations.spend("t", ends))
        self.assertFalse(await other.revocations.spend("t", ends))
        self.assertTrue(await other.revocations.spend("u", ends))
        await self.store.stop()
        again = await self.opened()
        self.assertFalse(await again.revocations.spend("u", ends))

    async def test_a_ticket_at_two_instances_at_once_is_spent_once(self) -> None:
        """One of all calls wins."""
        stores = [self.store, *[await self.opened() for _ in range(2)]]
        for turn in range(5):
            ticket, ends = f"ticket {turn}", self.later(30)
            spent = await gatherResults(
                [store.revocations.spend(ticket, ends) for _ in range(3) for store in stores]
            )
            self.assertEqual(sorted(spent), [False] * 8 + [True])

    async def tickets(self) -> int:
        """Return the number of spent tickets that the store remembers."""
        raise NotImplementedError

    async def test_a_sweep_forgets_tickets_that_have_ended(self) -> None:
        """And no others; they are no revocations."""
        for seconds in (5, 5, 30):
            await self.revocations.spend(f"ticket {seconds}", self.later(seconds))
        self.reactor.advance(5)
        self.assertEqual(await self.revocations.sweep(), 0)
        self.assertEqual(await self.tickets(), 1)
        self.assertFalse(await self.revocations.spend("ticket 30", self.later(25)))
