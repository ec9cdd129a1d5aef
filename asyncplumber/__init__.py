"""
The pipe from background tasks to the browsers that wait for their results.

``twistd asyncplumber`` is the server.  ``Plumber`` is the same for a Twisted application of your
own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncplumber.clocks import steady
    from asyncplumber.core.event_iterator import EventsMissed
    from asyncplumber.errors import (
        BadAccount,
        BadCursor,
        BadRequest,
        PlumberError,
        TooManyRequests,
        Unavailable,
    )
    from asyncplumber.event import Cursor, Event
    from asyncplumber.grant import Accounts, Grant
    from asyncplumber.interfaces import IAuthority
    from asyncplumber.own_authority import authority_from_files
    from asyncplumber.plumber import Plumber
    from asyncplumber.sending import Receipt
    from asyncplumber.starters.in_process import LATER, Run
    from asyncplumber.stores.retention import Retention

__all__ = [
    "LATER",
    "Accounts",
    "BadAccount",
    "BadCursor",
    "BadRequest",
    "Cursor",
    "Event",
    "EventsMissed",
    "Grant",
    "IAuthority",
    "Plumber",
    "PlumberError",
    "Receipt",
    "Retention",
    "Run",
    "TooManyRequests",
    "Unavailable",
    "authority_from_files",
    "steady",
]

_MODULES = {
    "Accounts": "grant",
    "Grant": "grant",
    "IAuthority": "interfaces",
    "authority_from_files": "own_authority",
    "Plumber": "plumber",
    "Retention": "stores.retention",
    "Cursor": "event",
    "Event": "event",
    "EventsMissed": "core.event_iterator",
    "Receipt": "sending",
    "steady": "clocks",
    "LATER": "starters.in_process",
    "Run": "starters.in_process",
}


def __getattr__(name: str) -> Any:
    # On demand: a task that only sends, by ``asyncplumber.client``, is not to load Twisted.
    if name not in __all__:
        raise AttributeError(f"module 'asyncplumber' has no attribute {name!r}")
    return getattr(import_module(f"asyncplumber.{_MODULES.get(name, 'errors')}"), name)
