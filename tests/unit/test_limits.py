"""How often and how many: rates by GCRA against a token bucket, and counts."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as some
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.limits.rates import Counts, Limiter, Rate

# Times and rates that a float holds exactly, so that the edge of a limit is exact as well.
STEPS = some.lists(
    some.tuples(
        some.integers(0, 4096).map(lambda units: units / 1024),  # seconds before
        some.integers(0, 2),  # the key
        some.integers(1, 8),  # the cost
    ),
    max_size=60,
)


class TokenBucket:
    """The model: tokens that fill up at a rate, as everybody would write it."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.tokens: dict[int, tuple[Fraction, Fraction]] = {}

    def left(self, key: int, now: Fraction) -> Fraction:
        burst = Fraction(self.rate.burst)
        tokens, at = self.tokens.get(key, (burst, now))
        return min(burst, tokens + (now - at) * Fraction(self.rate.per_second))

    def take(self, key: int, now: Fraction, cost: int) -> bool:
        left = self.left(key, now)
        if left >= cost:
            self.tokens[key] = left - cost, now
        return left >= cost

    def charge(self, key: int, now: Fraction, cost: int) -> None:
        self.tokens[key] = self.left(key, now) - cost, now


class LimiterTests(SynchronousTestCase):
    """Rates."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)

    def limiter(self, burst: float, per_second: float, keys: int = 1000) -> Limiter:
        return Limiter(Rate(burst, per_second), self.clock.seconds, keys)

    def test_a_burst_passes_and_then_the_rate(self) -> None:
        """20 at once, then one in 3 seconds; the answer says when the next one passes."""
        limiter = self.limiter(20, 1 / 3)
        self.assertEqual([limiter.take("a") for _ in range(20)], [0.0] * 20)
        for _ in range(3):
            self.assertAlmostEqual(limiter.take("a"), 3.0, places=4)
        self.assertEqual(limiter.take("b"), 0.0)
        for _ in range(1000):
            self.clock.advance(2.99)
            self.assertAlmostEqual(limiter.take("a"), 0.01, places=4)
            self.clock.advance(0.01)
            self.assertEqual(limiter.take("a"), 0.0)

    def test_after_a_rest_a_burst_passes_again(self) -> None:
        """No more than one burst, however long the rest was."""
        limiter = self.limiter(5, 10)
        for rest in (0.0, 0.5, 3600.0):
            self.clock.advance(rest)
            self.assertEqual([limiter.take("a") > 0 for _ in range(6)], [False] * 5 + [True])

    def test_bytes_may_be_owed(self) -> None:
        """One that is longer than the burst is counted, and the next one waits for it."""
        limiter = self.limiter(100, 10)
        self.assertEqual(limiter.charge("a", 100), 0.0)
        self.assertEqual(limiter.charge("a", 150), 0.0)
        self.assertAlmostEqual(limiter.charge("a", 1), 15.0, places=4)
        self.assertEqual(limiter.charge("b", 1), 0.0)
        self.clock.advance(15)
        self.assertEqual(limiter.charge("a", 1), 0.0)
        limiter.owe("a", 49)
        self.assertAlmostEqual(limiter.charge("a", 1), 5.0, places=4)

    @given(
        STEPS,
        some.integers(1, 10),
        some.sampled_from([0.125, 0.25, 1.0, 2.0, 16.0]),
        some.booleans(),
    )
    def test_it_is_a_token_bucket(
        self, steps: list[tuple[float, int, int]], burst: int, rate: float, owing: bool
    ) -> None:
        """The same is allowed and refused, in any order, for any times and costs."""
        clock = Clock()
        limiter = Limiter(Rate(burst, rate), clock.seconds)
        model = TokenBucket(Rate(burst, rate))
        for wait, key, cost in steps:
            clock.advance(wait)
            now = Fraction(clock.seconds())
            left = model.left(key, now)
            self.assertEqual(limiter.wait(key, cost) == 0.0, left >= cost)
            if owing:
                self.assertEqual(limiter.charge(key, cost) == 0.0, left >= 0)
                if left >= 0:
                    model.charge(key, now, cost)
            else:
                self.assertEqual(limiter.take(key, cost) == 0.0, model.take(key, now, cost))

    def test_what_it_says_is_when_it_passes(self) -> None:
        """Just before, it is refused; then it is not."""
        limiter = self.limiter(3, 0.7)
        for _ in range(3):
            limiter.take("a")
        wait = limiter.take("a")
        self.clock.advance(wait - 0.001)
        self.assertGreater(limiter.take("a"), 0)
        self.clock.advance(0.002)
        self.assertEqual(limiter.take("a"), 0.0)

    def test_a_flood_of_keys_is_bounded_and_forgives(self) -> None:
        """The keys that were used longest ago are forgotten; one in use is not."""
        limiter = self.limiter(1, 0.001, keys=100)
        limiter.take("first")
        for number in range(200):
            limiter.take(number)
            self.assertGreater(limiter.take(number), 0)
            self.assertLessEqual(len(limiter), 100)
            limiter.take("in use", 0)
            self.assertGreater(limiter.take("in use"), 0) if number else limiter.take("in use")
        self.assertEqual(limiter.take("first"), 0.0)

    def test_keys_that_have_rested_are_forgotten(self) -> None:
        """As soon as another one comes, and none before it has rested."""
        limiter = self.limiter(2, 10)
        for number in range(500):
            limiter.take(number, 2)
        self.clock.advance(0.19)
        limiter.take("a")
        self.assertGreater(limiter.take(499, 2), 0)
        for _ in range(3):
            self.clock.advance(0.21)
            limiter.take("b")
        self.assertLess(len(limiter), 5)

    def test_what_is_owed_is_not_forgotten(self) -> None:
        """However long it is, and whoever else comes meanwhile."""
        limiter = self.limiter(10, 1)
        limiter.charge("a", 1000)
        for number in range(98):
            self.clock.advance(10)
            limiter.take(number)
        self.assertGreater(limiter.charge("a", 1), 0)
        self.clock.advance(10)
        self.assertEqual(limiter.charge("a", 1), 0.0)


class CountsTests(SynchronousTestCase):
    """Numbers."""

    @given(some.lists(some.tuples(some.integers(0, 3), some.booleans()), max_size=100))
    def test_it_is_a_count_for_each_key(self, steps: list[tuple[int, bool]]) -> None:
        """No key gets beyond the limit, and nothing is kept of a key that has nothing open."""
        counts = Counts()
        model = [0, 0, 0, 0]
        for key, comes in steps:
            if comes:
                self.assertEqual(counts.enter(key, 3), model[key] < 3)
                model[key] = min(3, model[key] + 1)
            elif model[key]:
                counts.leave(key)
                model[key] -= 1
            self.assertEqual([counts[each] for each in range(4)], model)
            self.assertEqual(len(counts), sum(map(bool, model)))

    def test_what_did_not_come_cannot_leave(self) -> None:
        """A bug must not make a limit wider."""
        self.assertRaises(KeyError, Counts().leave, "a")
