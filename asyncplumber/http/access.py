"""What each path needs of a credential: one table, in front of both ways in."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from asyncplumber.errors import InsufficientScope
from asyncplumber.grant import Action, Grant
from asyncplumber.http.admin_files import is_admin_file


class Kind(Enum):
    """What a request needs."""

    NOTHING = "nothing"  # probes, static files
    SUBSCRIBE = "subscribe"  # to the account in the path
    PUBLISH = "publish"  # to the account in the path, or in the body
    EITHER = "either"  # a grant that may subscribe or publish to the account in the path
    START = "start"  # tasks of the account in the path
    READ_TASK = "read-task"  # a grant that may subscribe to, or start tasks of, that account
    ANY = "any"  # a credential; the handler says what it must allow
    METRICS = "metrics"  # an admin credential, where there is authentication at all
    ADMIN = "admin"  # an admin credential
    OPERATE = "operate"  # an admin credential, which opens every account to the admin page
    PEER = "peer"  # a signature of another instance, which the handler checks


class Need(NamedTuple):
    """
    What a request needs.

    Attributes:
        kind: Of what kind it is.
        segment: The account as a raw path segment; None if the path names none.
    """

    kind: Kind
    segment: bytes | None = None


_ACTIONS = {
    Kind.SUBSCRIBE: Action.SUBSCRIBE,
    Kind.PUBLISH: Action.PUBLISH,
    Kind.START: Action.START,
    Kind.READ_TASK: Action.SUBSCRIBE,  # what an application is asked about it
}
_NOTHING, _ANY = Need(Kind.NOTHING), Need(Kind.ANY)
_PATHS = {
    b"/": _NOTHING,
    b"/healthz": _NOTHING,
    b"/readyz": _NOTHING,
    b"/asyncplumber.js": _NOTHING,
    b"/page.js": _NOTHING,
    b"/page.css": _NOTHING,
    b"/favicon.svg": _NOTHING,
    b"/hooks": Need(Kind.PUBLISH),
    b"/callbacks": Need(Kind.PUBLISH),
    b"/metrics": Need(Kind.METRICS),
    b"/revocations": Need(Kind.ADMIN),
}
# Events of any account for the admin page.  The gate takes the beginning off, which leaves a path
# of `_ACCOUNTS`.
ADMIN = b"/admin"
CALLBACKS = b"/callbacks/"  # before a token, which is the credential
TASKS = b"/tasks/"
OPERATED = (b"/admin/events/", b"/admin/hooks/")
_ACCOUNTS = (
    (b"/hooks/", Kind.PUBLISH),
    (b"/events/", Kind.SUBSCRIBE),
    (b"/accounts/", Kind.EITHER),
)


def action_of(need: Need) -> Action | None:
    """Return the action that a request of this kind is, None if it is none in particular."""
    return _ACTIONS.get(need.kind)


def need_of(path: bytes, method: bytes = b"GET") -> Need:
    """
    Return what a request to this path needs.

    A path that is in no table needs a credential, also if there is nothing at it.

    Args:
        path: Below our root, as it was sent, without its query.
        method: Of the request.
    """
    for prefix, kind in _ACCOUNTS:
        if path.startswith(prefix):
            return Need(kind, path[len(prefix) :])
    if path.startswith(CALLBACKS):
        return Need(Kind.PUBLISH) if method == b"DELETE" else _NOTHING
    if path.startswith(TASKS):
        return _task_need(path, method)
    known = _PATHS.get(path)
    if known is not None:
        return known
    if path.startswith(b"/instances/"):
        return _instance_need(path)
    if path.startswith(ADMIN):
        return _admin_need(path)
    return _ANY


def _task_need(path: bytes, method: bytes) -> Need:
    """Return the need of ``/tasks/{account}…``."""
    account, slash, _ = path[len(TASKS) :].partition(b"/")
    if method in (b"PUT", b"POST"):
        return Need(Kind.START, account)
    return Need(Kind.READ_TASK if slash else Kind.SUBSCRIBE, account)


def _admin_need(path: bytes) -> Need:
    """Return the need of ``/admin…``: the page asks for a credential, so it needs none itself."""
    if path.startswith(OPERATED):
        return Need(Kind.OPERATE)
    return _NOTHING if is_admin_file(path) else Need(Kind.ADMIN)


def _instance_need(path: bytes) -> Need:
    """Return the need of ``/instances/{id}/…``: the hook there is for publishers, too."""
    _, _, *rest = path.split(b"/", 4)[1:]
    is_hook = len(rest) == 2 and rest[0] == b"hooks"
    return Need(Kind.PUBLISH, rest[1]) if is_hook else Need(Kind.PEER)


def check(grant: Grant, need: Need, account: str | None) -> None:
    """
    Raise `InsufficientScope` if a grant does not allow what a request needs.

    Args:
        grant: What the credential of the request allows.
        need: What the request needs.
        account: The account that its path names; None if it names none.
    """
    kind = need.kind
    if account is not None:
        if kind is Kind.EITHER:
            allowed = account in grant.subscribe or account in grant.publish
        elif kind is Kind.READ_TASK:
            allowed = account in grant.subscribe or account in grant.start
        else:
            action = action_of(need)
            assert action is not None  # only these kinds have an account
            allowed = grant.allows(action, account)
    elif kind in (Kind.ADMIN, Kind.METRICS, Kind.OPERATE):
        allowed = grant.is_admin
    else:
        # The body names an account.
        allowed = kind is not Kind.PUBLISH or bool(grant.publish)
    if not allowed:
        raise InsufficientScope
