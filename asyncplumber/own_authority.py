"""The authority of a plumber in an application of your own."""

from __future__ import annotations

from typing import Any

from asyncplumber._twisted_compat import global_reactor
from asyncplumber.auth.authority import Authority
from asyncplumber.auth.build import Sources, build_authority
from asyncplumber.auth.secret_files import SecretFile, read_secret_file
from asyncplumber.auth.tokens.mint import AUDIENCE
from asyncplumber.clocks import TimeSource, WallClock


def authority_from_files(
    *,
    jwt_secret_file: str = "",
    publisher_key_file: str = "",
    auth: str = "",
    audience: str = AUDIENCE,
    reactor: Any = None,
    wall: TimeSource = WallClock,
) -> Authority:
    """
    Return the authority that the files describe, for ``Plumber(authority=…)``.

    The files are those of the options with these names.  They are read again when they change.

    Args:
        jwt_secret_file: Secrets of tokens (HS256), one a line; empty for none.
        publisher_key_file: Keys that may publish to every account and start its tasks, one a
            line; empty for none.
        auth: Issuers, keys, senders and the call-out, in TOML; empty for none.
        audience: The claim ``aud`` that tokens must have.
        reactor: The reactor to run on; None is the global one.
        wall: The time of day.

    Raises:
        ValueError: No file is given, or something in one is wrong.
    """
    reactor = reactor or global_reactor()
    sources = Sources(auth, _secrets(jwt_secret_file), _secrets(publisher_key_file), audience)
    authority = build_authority(sources, reactor, wall.seconds)
    if authority is None:
        raise ValueError("give jwt_secret_file, publisher_key_file or auth")
    return authority


def _secrets(path: str) -> SecretFile | None:
    return SecretFile(path, read_secret_file(path)) if path else None
