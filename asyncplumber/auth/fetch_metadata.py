"""
Fetch Metadata (W3C): what a browser tells, in ``Sec-Fetch-…``, of the page behind a request.

A page cannot set these headers.  They are also sent without an Origin, such as for ``<img>``,
links and prefetches.  Browsers send them to ``https`` and to the loopback interface only, and
programs send none: a request without them is judged by its Origin alone.
"""

from __future__ import annotations

from asyncplumber.auth.origins import Origins
from asyncplumber.wire.fields import Headers

_SITE, _MODE = b"sec-fetch-site", b"sec-fetch-mode"
# The page is ours, or there is none: the user has typed the address.
_OWN = frozenset({b"same-origin", b"none"})
# What ``<img>``, ``<script>``, forms, links and frames do.  The page cannot read the response, so
# no page needs this for events.
_BLIND = frozenset({b"no-cors", b"navigate"})


def check(headers: Headers, origins: Origins, *, is_event_request: bool) -> None:
    """
    Refuse a request that a page of another origin makes.

    To be called for what changes something: a POST, and ``/events``, where a subscriber is added.

    Args:
        headers: Those of the request.
        origins: Whose pages are allowed.
        is_event_request: Whether the path is below ``/events``.

    Raises:
        ForeignOrigin: The page is of another origin, and it is not allowed.
    """
    site = headers.get(_SITE)
    if site is None or site in _OWN:
        return
    is_blind = is_event_request and headers.get(_MODE) in _BLIND
    if is_blind or not origins.allows(headers):
        origins.refuse(headers.get(b"origin", site))
