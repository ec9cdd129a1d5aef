"""
Makes the parts of an authority from what is configured, and keeps what outlives a configuration.

That is the keys that were fetched from issuers, and what is known of open streams that the
application allowed.  A new configuration replaces the parts; what is not concerned goes on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

from twisted.internet.interfaces import IReactorTime

from asyncplumber.auth.authority import End, Parts
from asyncplumber.auth.call_out.call_out import CallOut
from asyncplumber.auth.call_out.recheck import Recheck
from asyncplumber.auth.call_out.table import CallOutTable
from asyncplumber.auth.config import Config
from asyncplumber.auth.fetch import Fetch
from asyncplumber.auth.keys import Keys
from asyncplumber.auth.senders.senders import Senders
from asyncplumber.auth.tokens.issuer_table import IssuerTable
from asyncplumber.auth.tokens.jose import load_jwk
from asyncplumber.auth.tokens.jwks import FetchedKeys
from asyncplumber.auth.tokens.signing_keys import Key, KeySource
from asyncplumber.auth.tokens.verifier import Issuer, Verifier
from asyncplumber.errors import Unavailable
from asyncplumber.figures import LabelledGauge, Metric
from asyncplumber.grant import Grant

Source = tuple[str, str, tuple[str, ...]]  # the name, the URL and the algorithms of an issuer


class Assembly:
    """What stands behind the parts of an authority."""

    def __init__(
        self,
        fetch: Fetch,
        clock: IReactorTime,
        now: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        """
        Args:
            fetch: Sends requests to issuers and to the application.
            clock: A clock that is never set.
            now: Returns the seconds since 1970.
            draw: Returns a number between 0 and 1.
        """
        self._fetch = fetch
        self._clock = clock
        self._now = now
        self._fetched: dict[Source, FetchedKeys[Key]] = {}
        self._recheck = Recheck(None, clock, now, draw)
        # There from the beginning, for its metrics; it counts only if it is configured.
        self._call_out = CallOut(CallOutTable(url=""), fetch, clock, now)
        self._is_started = False

    def parts(
        self,
        config: Config,
        *,
        audience: str,
        other: Issuer | None = None,
        keys: Mapping[bytes, Grant] | None = None,
    ) -> Parts:
        """
        Return the parts for a configuration.

        Args:
            config: What the file says.
            audience: Of tokens, if the file does not say it.
            other: Whose tokens are those of no issuer of the file; None refuses them.
            keys: What further static keys allow, by their digests.
        """
        issuers = self._issuers(config, config.audience or audience)
        grants = {digest: grant for key in config.keys for digest, grant in key.grants.items()}
        grants.update(keys or {})
        has_tokens = bool(issuers) or other is not None
        return Parts(
            tokens=Verifier(issuers, self._now, other) if has_tokens else None,
            keys=Keys(grants) if grants else None,
            senders=Senders(config.senders, self._now) if config.senders else None,
            call_out=self._configured(config.callout),
            anonymous=config.anonymous,
            cookie=config.cookie,
        )

    def _issuers(self, config: Config, audience: str) -> dict[str, Issuer]:
        """Return the issuers; fetch the keys of those that are new, and no more of those gone."""
        before, self._fetched = self._fetched, {}
        issuers = {
            table.iss: Issuer(table.rules(audience), keys or self._fetched_keys(table, before))
            for table, keys in zip(config.issuers, config.issuer_keys, strict=True)
        }
        for source, fetched in before.items():
            if source not in self._fetched:
                fetched.stop()
        return issuers

    def _fetched_keys(
        self, table: IssuerTable, before: Mapping[Source, FetchedKeys[Key]]
    ) -> KeySource:
        assert table.jwks_url is not None, "it has no other source"
        algorithms = table.key_algorithms
        source = (table.iss, table.jwks_url, algorithms)

        def load(member: Mapping[str, object]) -> Key:
            key = load_jwk(member)
            if key.alg not in algorithms:
                raise ValueError(f"it is for {key.alg}, which this issuer is not to use")
            return key

        fetched = before.get(source) or FetchedKeys(
            table.iss, table.jwks_url, self._fetch, self._clock, load
        )
        self._fetched[source] = fetched
        if self._is_started:
            fetched.start()
        return fetched

    def _configured(self, table: CallOutTable | None) -> CallOut | None:
        if table is None:
            self._recheck.configure(None)
            return None
        if table != self._call_out.table:
            self._call_out.configure(table)
        self._recheck.configure(self._call_out)
        return self._call_out

    def end_by(self, end: End) -> None:
        """Let this end the streams that the application refuses."""
        self._recheck.end = end

    def start(self) -> None:
        """Fetch keys, and ask about open streams, from now on."""
        self._is_started = True
        for fetched in self._fetched.values():
            fetched.start()
        self._recheck.start()

    def stop(self) -> None:
        """Do neither any more."""
        self._is_started = False
        for fetched in self._fetched.values():
            fetched.stop()
        self._recheck.stop()

    def check_ready(self) -> None:
        """Raise `Unavailable` if the keys of an issuer were never fetched."""
        missing = [fetched.issuer for fetched in self._fetched.values() if not fetched.is_ready]
        if missing:
            raise Unavailable("the keys of an issuer of tokens are not there yet")

    def metrics(self) -> Sequence[Metric]:
        """
        Return what is counted and measured.

        Only the issuers of this moment are shown with the age of their keys.
        """
        metrics: list[Metric] = [*self._call_out.metrics]
        issuers = sorted({fetched.issuer for fetched in self._fetched.values()})
        if issuers:
            metrics.append(
                LabelledGauge(
                    "jwks_age_seconds",
                    "Seconds since the keys of an issuer were fetched; NaN if they never were.",
                    "issuer",
                    issuers,
                    self._age,
                    merge="max",
                )
            )
        return metrics

    def _age(self, issuer: str) -> float:
        ages = [each.age for each in self._fetched.values() if each.issuer == issuer]
        return math.nan if not ages or ages[0] is None else ages[0]
