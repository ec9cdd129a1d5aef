"""The paths below ``/tasks``: which task is meant, and what of it."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from asyncplumber.errors import BadRequest, NotFound
from asyncplumber.http.syntax import account_of
from asyncplumber.wire.tasks import task_key

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")  # RFC 3986, 2.1


class Page(Enum):
    """What is at a path."""

    LIST = "list"  # /tasks/{account}
    TASK = "task"  # /tasks/{account}/{task}
    RESULT = "result"  # /tasks/{account}/{task}/result
    CANCEL = "cancel"  # /tasks/{account}/{task}/cancel


_BELOW = {b"result": Page.RESULT, b"cancel": Page.CANCEL}


class TaskPath(NamedTuple):
    """
    A path, taken apart.

    Attributes:
        page: What is there.
        account: The account.
        key: The key of the task; empty for the list.
    """

    page: Page
    account: str
    key: str = ""


def task_path(path: bytes) -> TaskPath:
    """
    Take a path apart.  Each segment is decoded by itself: ``%2F`` is part of a name.

    Args:
        path: Below our root, as it was sent, without its query.  It begins with ``/tasks/``.

    Raises:
        NotFound: There is nothing at it.
        BadAccount: Its account is none.
        BadRequest: Its task is none.
    """
    segments = path.split(b"/")[2:]
    if len(segments) == 1:
        return TaskPath(Page.LIST, account_of(segments[0]))
    page = Page.TASK if len(segments) == 2 else None
    if len(segments) == 3:
        page = _BELOW.get(segments[2])
    if page is None:
        raise NotFound
    return TaskPath(page, account_of(segments[0]), _key_of(segments[1]))


def _key_of(segment: bytes) -> str:
    if _BAD_ESCAPE.search(segment):
        raise BadRequest("the path has a percent sign that begins no escape")
    try:
        return task_key(unquote_to_bytes(segment).decode())
    except UnicodeDecodeError:
        raise BadRequest("a task is named in UTF-8, percent-encoded") from None


def location_of(root: bytes, account: str, key: str) -> bytes:
    """Return the path of a task; ``root`` is where ours are mounted, empty for the top."""
    return b"%b/tasks/%b/%b" % (root, _quoted(account), _quoted(key))


def _quoted(name: str) -> bytes:
    return quote(name, safe="").encode("ascii")
