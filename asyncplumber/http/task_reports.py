"""Reports of runners: from a POST with the header ``Task`` to a receipt."""

from __future__ import annotations

import json

from asyncplumber.core.tasks.outcomes import Reported
from asyncplumber.errors import BadRequest
from asyncplumber.event import timestamp
from asyncplumber.http.problems import receipt_member
from asyncplumber.http.responses import JSON, Response, receipt_members, receipt_status
from asyncplumber.sending import Receipt
from asyncplumber.task import Report
from asyncplumber.wire.fields import Headers
from asyncplumber.wire.parse import drafts_of
from asyncplumber.wire.tasks import task_fields

NO_BATCH = "a report about a task is one event, and no batch"
_NOBODY = {"ok": 0, "failed": 0}


def report_of(account: str, headers: Headers, body: bytes, now: float) -> Report:
    """
    Return what a POST with the header ``Task`` reports.

    Without a body it is a beat, or an end without a result.

    Raises:
        BadRequest: It cannot be understood, or it is a batch.
        UnsupportedMediaType: The body is compressed, or in an unknown format of CloudEvents.
    """
    fields = task_fields(headers)
    if not body and b"content-type" in headers:
        # Many clients send the type of what is not there.
        headers = {name: value for name, value in headers.items() if name != b"content-type"}
    drafts = drafts_of(account, headers, body, timestamp(now))
    if len(drafts) != 1:
        raise BadRequest(NO_BATCH)
    return Report(
        drafts[0],
        fields.key,
        fields.state,
        run=fields.run,
        begins=fields.begins,
        is_beat=not body,
        patience=fields.patience,
    )


def report_response(reported: Reported, id: str) -> Response:
    """
    Return the receipt of a report.

    Args:
        reported: What became of it.
        id: The id of its event, which may never be stored.
    """
    receipt = reported.receipt
    if receipt is None:
        receipt, status = Receipt(id, "", False, 0, _NOBODY), 202 if reported.is_conflated else 200
    else:
        status = 200 if receipt.duplicate else receipt_status([receipt])
    conflated = ',"conflated":true' if reported.is_conflated else ""
    task = json.dumps(receipt_member(reported.task), separators=(",", ":"))
    body = f'{{"status":"ok",{receipt_members(receipt)}{conflated},"task":{task}}}\n'
    return Response(status, JSON, body.encode("ascii"))
