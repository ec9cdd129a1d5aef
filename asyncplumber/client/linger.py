"""
A process that sends what a program could not wait for.

``python -m asyncplumber.client.linger`` reads it from standard input: a token in it is in no list
of processes.  Needs only the standard library.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from asyncplumber.client.request import Request
from asyncplumber.client.response import Refused, interpret_report
from asyncplumber.client.retry import RetryPolicy, Undelivered
from asyncplumber.client.send import Sender


def send_later(url: str, requests: Sequence[Request], seconds: float) -> None:
    """
    Have another process send these reports, in order.  Returns at once.

    Args:
        url: Where the plumber is.
        requests: The reports.
        seconds: How long it tries with each.

    Raises:
        OSError: There can be no other process.
    """
    work = {
        "url": url,
        "seconds": seconds,
        "requests": [
            {**request._asdict(), "body": base64.b64encode(request.body).decode()}
            for request in requests
        ],
    }
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a key of the terminal does not end it
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(work).encode())
        process.stdin.close()
    process.returncode = 0  # nobody waits for it, and nobody is to be warned of that


def main() -> None:
    """Send what standard input has."""
    work = json.loads(sys.stdin.buffer.read())
    sender = Sender(work["url"], retry_policy=RetryPolicy(deadline=work["seconds"]))
    for fields in work["requests"]:
        request = Request(**{**fields, "body": base64.b64decode(fields["body"])})
        with suppress(Refused, Undelivered):
            sender.exchange(request, interpret_report)


if __name__ == "__main__":
    main()
