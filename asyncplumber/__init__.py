"""
asyncplumber: the pipe from background tasks to the browsers that wait for their results.

``twistd asyncplumber`` is the server; `Plumber` is the same for a Twisted application of your own.
"""

from asyncplumber.errors import BadAccount, BadCursor, BadRequest, PlumberError, TooManyRequests, Unavailable
from asyncplumber.event import Cursor, Event, Receipt
from asyncplumber.plumber import Plumber
from asyncplumber.stores.keeping import Keeping

__all__ = [
    "BadAccount",
    "BadCursor",
    "BadRequest",
    "Cursor",
    "Event",
    "Keeping",
    "Plumber",
    "PlumberError",
    "Receipt",
    "TooManyRequests",
    "Unavailable",
]
