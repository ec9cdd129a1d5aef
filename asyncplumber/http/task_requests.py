"""What a request to ``/tasks`` asks: which task, how long it waits, and what it starts."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from secrets import token_hex

from asyncplumber.core.subscribe import wait_in
from asyncplumber.errors import MethodNotAllowed
from asyncplumber.http.request import Request
from asyncplumber.http.task_paths import Page, TaskPath, location_of, task_path
from asyncplumber.task import StartRequest
from asyncplumber.wire.fields import header_text
from asyncplumber.wire.parse import check_encoding, checked_content_type, unquoted
from asyncplumber.wire.preferences import MAX_WAIT, Freshness, Wish, freshness_of, wish_of
from asyncplumber.wire.tasks import task_key

_READ, _WRITE = ("GET", "HEAD"), ("POST", "PUT")
METHODS = {
    Page.LIST: (*_READ, "POST"),
    Page.TASK: (*_READ, *_WRITE),
    Page.RESULT: _READ,
    Page.CANCEL: ("POST",),
}
_HELD = (Page.TASK, Page.RESULT)


@dataclass(frozen=True, slots=True)
class Asked:
    """
    What a request asks.

    Attributes:
        path: Which task, and what of it.
        start: What it starts; None if it starts nothing.
        wish: What it says in ``Prefer``.
        wait: Seconds for which it wants to be held.
        root: The path at which ours are mounted; empty for the top.
        is_live_only: Whether a list is wanted without the tasks that have ended.
    """

    path: TaskPath
    start: StartRequest | None
    wish: Wish
    wait: float
    root: bytes
    is_live_only: bool = False

    @property
    def location(self) -> bytes:
        """Where the task is."""
        return location_of(self.root, self.path.account, self.path.key)


def allowed(page: Page) -> str:
    """Return the methods of a page, as ``Allow`` lists them."""
    return ", ".join((*METHODS[page], "OPTIONS"))


def asked_by(request: Request, body: bytes, hold: float) -> Asked:
    """
    Return what a request asks.

    Args:
        request: The request.
        body: Its body.
        hold: The seconds for which a start is held that does not say how long.

    Raises:
        NotFound: There is nothing at its path.
        BadAccount, BadRequest: It cannot be understood.
        MethodNotAllowed: The path has no such method.
        UnsupportedMediaType: The body is compressed.
    """
    path, method = task_path(request.target.partition(b"?")[0]), request.method.decode("ascii")
    if method not in METHODS[path.page]:
        raise MethodNotAllowed(allowed(path.page))
    start, query = None, request.query
    if method in _WRITE and path.page is not Page.CANCEL:
        path, start = _started_by(path, request, body)
    wish, wait = Wish(), 0.0
    if path.page in _HELD and "wait" in query:
        wait = wait_in(query)
    elif path.page in _HELD:
        wish = wish_of(request.headers)
        if wish.wait is not None:
            wait = min(float(wish.wait), MAX_WAIT)
        elif start is not None and not wish.is_async:
            wait = hold
    return Asked(path, start, wish, wait, request.root, "live" in query)


def _started_by(path: TaskPath, request: Request, body: bytes) -> tuple[TaskPath, StartRequest]:
    """Return the path of the task that a request starts, and what it wants."""
    headers = request.headers
    check_encoding(headers)
    content_type, _ = checked_content_type(headers.get(b"content-type", b""))
    freshness, is_once = freshness_of(headers), False
    if path.page is Page.LIST:
        key = unquoted(header_text(headers, b"idempotency-key") or "")
        is_once = bool(key)
        path = path._replace(page=Page.TASK, key=task_key(key) if is_once else token_hex(10))
        if is_once and freshness.max_age is None:
            # A request that is repeated is not done twice.
            freshness = Freshness(inf, freshness.only_if_cached)
    wanted = StartRequest(
        path.account,
        path.key,
        content_type,
        body,
        freshness.max_age,
        freshness.only_if_cached,
        is_once,
    )
    return path, wanted
