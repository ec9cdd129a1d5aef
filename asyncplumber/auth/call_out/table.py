"""How the application is asked, as the table ``[callout]`` of the ``--auth`` file."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncplumber.auth.fetch import check_url
from asyncplumber.auth.secret_files import read_secret_lines
from asyncplumber.auth.table import Table

#: The headers of a client that the application may be shown.  All others say nothing about who the
#: client is, or are what we say ourselves.
FORWARDABLE = ("authorization", "cookie", "origin", "user-agent")
FORWARD = ("authorization", "cookie")
SHORTEST_SECRET = 16  # bytes


@dataclass(frozen=True, kw_only=True)
class CallOutTable:
    """
    What the file says of the call-out.

    Attributes:
        url: What is asked.
        is_private: Whether nobody on the way can read what is asked.
        forward: The headers of the client that are sent along, in lower case.
        secret: Signs what is asked; None signs nothing.
        secret_file: Where the secret is.
        timeout: Seconds until the whole response must be there.
        cache: Seconds that a permission is remembered, if the response does not say less.
        recheck: Seconds after which an open stream is asked about again.
        grace: Seconds that an open stream stays while the application cannot be asked.
        calls: Questions under way at the same time.
        waiting: Questions that wait for one of those to end.
    """

    url: str
    is_private: bool = True
    forward: tuple[str, ...] = FORWARD
    secret: bytes | None = field(default=None, repr=False)
    secret_file: str | None = None
    timeout: int = 2
    cache: int = 10
    recheck: int = 60
    grace: int = 300
    calls: int = 64
    waiting: int = 1000


def from_toml(value: object) -> CallOutTable:
    """
    Return what a table says, with the secret from its file.

    Raises ValueError, with a sentence that names the key.
    """
    table = Table(value, "[callout]")
    try:
        url, is_private = check_url(table.take("url"))
    except ValueError as error:
        raise ValueError(f"[callout]: url: {error}") from None
    forward: tuple[str, ...] = FORWARD
    if "forward" in table:
        forward = tuple(name.lower() for name in table.texts("forward"))
        if not set(forward) <= set(FORWARDABLE):
            raise table.error("forward", f"is a list of some of {', '.join(FORWARDABLE)}")
    path = table.optional_text("secret_file")
    secret = None
    if path is not None:
        try:
            (secret,) = read_secret_lines(path, SHORTEST_SECRET)[:1]
        except ValueError as error:
            raise ValueError(f"[callout]: secret_file: {error}") from None
    defaults = CallOutTable(url=url)
    found = CallOutTable(
        url=url,
        is_private=is_private,
        forward=forward,
        secret=secret,
        secret_file=path,
        timeout=table.whole("timeout", defaults.timeout, 1, 30),
        cache=table.whole("cache", defaults.cache, 0, 3600),
        recheck=table.whole("recheck", defaults.recheck, 1, 86400),
        grace=table.whole("grace", defaults.grace, 0, 86400),
        calls=table.whole("calls", defaults.calls, 1, 10000),
        waiting=table.whole("waiting", defaults.waiting, 0, 100000),
    )
    table.close()
    return found
