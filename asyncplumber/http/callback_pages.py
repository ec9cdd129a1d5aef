"""``/callbacks``: makes callback URLs for those who may publish, lists and removes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asyncplumber.auth.senders import callback_senders
from asyncplumber.core.tasks.callback_urls import LONGEST, CallbackMint, Minted
from asyncplumber.core.tasks.errors import UnknownTask
from asyncplumber.core.tasks.service import Tasks
from asyncplumber.errors import BadRequest
from asyncplumber.event import checked_account, is_plain, timestamp
from asyncplumber.grant import OPEN, Action, Grant
from asyncplumber.http.callbacks import UnknownCallback
from asyncplumber.http.json_objects import members_of
from asyncplumber.http.responses import Response, json_response
from asyncplumber.interfaces import CallbackUrl
from asyncplumber.task import KEY_LENGTH, TaskState, new_run
from asyncplumber.wire.callbacks import checked_pointer
from asyncplumber.wire.fields import checked_type
from asyncplumber.wire.tasks import task_key

DEFAULT_LIFETIME = 30 * 86_400  # seconds
SHORTEST_LIFETIME = 1  # seconds
PREFIX_LENGTH = 128  # characters of a prefix of types, so that there is room for types
_NO_STORE = (b"Cache-Control", b"no-store")
_MEMBERS = ("account", "task", "run", "expires_in", "ends", "verify", "state", "type")
_STATES = (TaskState.RUNNING, TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED)


class CallbackPages:
    """Makes callback URLs, lists and removes them.  The gate has looked at the credential."""

    def __init__(
        self,
        mint: CallbackMint,
        tasks: Tasks,
        recheck: Callable[[Grant, str], None],
        now: Callable[[], float],
    ) -> None:
        """
        Args:
            mint: Makes and finds URLs.
            tasks: Knows the live runs.
            recheck: Called with the grant and the account that a request names.
            now: Returns the time in seconds since 1970.
        """
        self._mint = mint
        self._tasks = tasks
        self._recheck = recheck
        self._now = now

    def _checked(self, account: object, grant: Grant) -> str:
        if not isinstance(account, str):
            raise BadRequest("account is the account that the URL is for")
        grant.check(Action.PUBLISH, checked_account(account))
        self._recheck(grant, account)
        return account

    async def make(self, body: bytes, grant: Grant) -> Response:
        """Make a URL.  Its token is told only now."""
        members = members_of(body, _MEMBERS)
        account = self._checked(members.get("account"), grant)
        task, run = await self._run_of(account, members)
        ends, pointer, prefix = _of_reports(members, task)
        scheme, secret, is_new = _verification(members.get("verify"))
        expires_at = self._now() + _lifetime(members.get("expires_in", DEFAULT_LIFETIME))
        minted = await self._mint.add(
            lambda digest, id: CallbackUrl(
                digest, account, expires_at, task, run, ends, scheme, secret, pointer, prefix, id
            )
        )
        told = _told(minted, secret if is_new else "")
        return json_response(201, told, _NO_STORE)

    async def _run_of(self, account: str, members: Mapping[str, Any]) -> tuple[str, str]:
        """Return the task and the run that a URL is bound to, empty for none."""
        task, run = members.get("task"), members.get("run")
        if task is None:
            if "run" in members:
                raise BadRequest("a run is one of a task: name the task")
            return "", ""
        key = task_key(task if isinstance(task, str) else "")
        if "run" in members:
            if run is None:
                return key, ""
            if not isinstance(run, str) or not is_plain(run, KEY_LENGTH):
                raise BadRequest(f"run is 1 to {KEY_LENGTH} characters, none of them control")
            return key, run
        try:
            found = (await self._tasks.get(account, key, 0.0, OPEN)).task
        except UnknownTask:
            return key, new_run(self._now())
        return key, new_run(self._now()) if found.is_done else found.run

    async def listed(self, query: Mapping[str, Sequence[str]], grant: Grant) -> Response:
        """List the URLs of an account, without their tokens."""
        account = self._checked(_parameter(query, "account"), grant)
        rows = await self._mint.of_account(account)
        return json_response(200, {"callbacks": [_about(row) for row in rows]}, _NO_STORE)

    async def remove(self, name: str, query: Mapping[str, Sequence[str]], grant: Grant) -> Response:
        """
        Remove the URL with this token, or with this id.

        An id is looked for in one account, which the query names.
        """
        row = await self._mint.find(name)
        if row is not None:
            account, id = self._checked(row.account, grant), row.id
        else:
            if "account" not in query and not grant.is_admin:
                raise UnknownCallback("name the account in the query, to remove a URL by its id")
            account, id = self._checked(_parameter(query, "account"), grant), name
        if not await self._mint.remove(account, id):
            raise UnknownCallback
        return json_response(200, {"status": "ok"})


def _parameter(query: Mapping[str, Sequence[str]], name: str) -> str | None:
    found = query.get(name)
    return found[0] if found else None


def _lifetime(value: object) -> float:
    """Return the seconds for which a URL is good."""
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not SHORTEST_LIFETIME <= value <= LONGEST  # False for NaN
    ):
        raise BadRequest(f"expires_in is a number of seconds from 1 to {LONGEST:.0f}")
    return float(value)


def _of_reports(members: Mapping[str, Any], task: str) -> tuple[bool, str, str]:
    """Return what a URL may report: whether ends, where the state is, and the prefix of types."""
    ends, pointer, prefix = members.get("ends", True), members.get("state"), members.get("type")
    if not isinstance(ends, bool):
        raise BadRequest("ends is true or false")
    if not task and ("ends" in members or pointer is not None):
        raise BadRequest("ends and state are about a task: name the task")
    if pointer is not None:
        checked_pointer(pointer if isinstance(pointer, str) else "")
    if prefix is not None:
        if task:
            raise BadRequest("type is about events of an account, and not about a task")
        checked_type(prefix, "type")
        if len(prefix) > PREFIX_LENGTH:
            raise BadRequest(f"type is at most {PREFIX_LENGTH} characters")
    return ends, pointer or "", prefix or ""


def _verification(value: object) -> tuple[str, str, bool]:
    """Return the scheme, empty for none, the secret, and whether the secret is a new one."""
    if value is None:
        return "", "", False
    if not isinstance(value, dict) or not value.keys() <= {"scheme", "secret"}:
        raise BadRequest('verify is {"scheme": …, "secret": …}')
    scheme = value.get("scheme")
    if scheme not in callback_senders.NAMES:
        raise BadRequest(f"verify.scheme is one of {', '.join(callback_senders.NAMES)}")
    if scheme == "none":
        if "secret" in value:
            raise BadRequest("with the scheme none there is no secret")
        return "", "", False
    if "secret" not in value:
        return scheme, callback_senders.new_secret(scheme), True
    return scheme, callback_senders.checked_secret(scheme, value["secret"]), False


def _about(row: CallbackUrl) -> dict[str, Any]:
    """Return what a list tells of a URL: no token, no secret."""
    about: dict[str, Any] = {
        "id": row.id,
        "account": row.account,
        "expires": timestamp(row.expires_at),
        "verify": row.scheme or "none",
    }
    if row.task:
        about.update(task=row.task, run=row.run or None, ends=row.ends)
        if row.pointer:
            about["state"] = row.pointer
    if row.type_prefix:
        about["type"] = row.type_prefix
    return about


def _told(minted: Minted, new_secret: str) -> dict[str, Any]:
    """Return what the one who asked for a URL is told of it."""
    row, url = minted.row, minted.url
    told: dict[str, Any] = {"url": url, "token": minted.token, **_about(row)}
    if new_secret:
        told["secret"] = new_secret
    if row.task:
        states = [state for state in _STATES if row.ends or not state.is_done]
        told["states"] = {state.value: f"{url}?state={state.value}" for state in states}
        # The configuration of push notifications, as an agent of A2A takes it.
        told["a2a"] = {"url": url, "token": minted.token}
        if row.scheme == "bearer":
            told["a2a"].update(
                token=row.secret, authentication={"scheme": "Bearer", "credentials": row.secret}
            )
    return told
