"""What ``--starter`` may name: a URL of the application, or a task of Celery."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from asyncplumber.auth.fetch import check_url
from asyncplumber.event import is_plain

CELERY = "celery:"
# A module, and perhaps an attribute of it, as Celery's own option -A has them.
_APP = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*)?")


@dataclass(frozen=True)
class WebhookAddress:
    """
    A URL to which tasks are POSTed.

    Attributes:
        url: The URL.  Its query may be a secret.
        is_private: Whether nobody can read on the way what is sent there.
    """

    url: str
    is_private: bool

    def __repr__(self) -> str:
        return f"<WebhookAddress {self.shown}>"

    @property
    def shown(self) -> str:
        """The URL as a log or a description may show it."""
        return self.url.partition("?")[0]


@dataclass(frozen=True)
class CeleryAddress:
    """
    A task of Celery.

    Attributes:
        app: Where the app is: ``MODULE`` or ``MODULE:APP``.
        task: The name of the task.
    """

    app: str
    task: str

    @property
    def shown(self) -> str:
        """The address as a log or a description may show it."""
        return f"{CELERY}{self.app}#{self.task}"


Address = WebhookAddress | CeleryAddress


def parse_address(text: str) -> Address | None:
    """
    Return what a text names; None if it is empty.

    Raises:
        ValueError: It is neither a URL nor ``celery:MODULE:APP#TASK``.
    """
    if not text:
        return None
    if text.startswith(CELERY):
        app, _, task = text.removeprefix(CELERY).partition("#")
        if not _APP.fullmatch(app) or not is_plain(task) or " " in task:
            raise ValueError("a task of Celery is celery:MODULE:APP#TASK")
        return CeleryAddress(app, task)
    return WebhookAddress(*check_url(text))


def describe_starter(address: Address | None, *, is_signed: bool) -> Iterator[str]:
    """Yield lines about what starts tasks.  Nothing in them is a secret."""
    if address is None:
        yield "Tasks are only reported: there is no --starter."
    elif isinstance(address, CeleryAddress):
        yield f"Tasks are started as the Celery task {address.task!r} of the app {address.app!r}."
    else:
        signed = "signed" if is_signed else "not signed"
        yield f"Tasks are started by POSTs to {address.shown}, which are {signed}."
        if not address.is_private:
            yield "  WARNING: http:// over a network shows the input of all tasks"
