"""
What a task is in MongoDB: a document of the collection ``tasks``, and the pipelines that change it.

Its fields are the attributes of `Task`; what is None is missing, so that indexes have rows only of
the tasks that their reader looks for.  Times are dates by the server's clock, which the server puts
in.  Further fields:

- ``is_done``: whether its run has ended
- ``leased_until``: until when somebody dispatches it alone; missing if nobody has to
- ``by``: the mark of the call that changed it last.  A command whose answer was lost is sent again,
  and finds its own mark.  Who knows that this mark is durable knows that what he reads is.
- ``moves``: by which gaps its deadline was moved, see `MongoTasks.extend`
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bson import ObjectId

from asyncplumber.event import Cursor
from asyncplumber.interfaces import Claim
from asyncplumber.stores.mongo.link import Document
from asyncplumber.task import FORMER_RUNS, NEVER, Task, TaskState

NOW = "$$NOW"
REMOVED = "$$REMOVE"  # in place of a value: without this field
_TIMES = ("submitted_at", "updated_at", "started_at", "ended_at", "deadline")
_OTHERS = (
    "account", "key", "run", "state", "patience", "progress", "progressed_at", "result",
    "result_type", "error", "cursor", "is_announced", "is_late", "is_cancel_requested", "digest",
    "input_type", "attempts", "former", "end_id",
)  # fmt: skip
#: Fields of lists, which have no inputs: nobody is shown them, and they may be large.
SHORT: Document = dict.fromkeys((*_TIMES, *_OTHERS, "by"), 1)
FULL: Document = {**SHORT, "input": 1}


def _partial(name: str, key: Document, which: Document) -> tuple[str, Document]:
    return "tasks", {"name": name, "key": key, "partialFilterExpression": which}


INDEXES: list[tuple[str, Document]] = [
    (
        "tasks",
        {
            "name": "of_account",
            "key": {"account": 1, "is_done": 1, "submitted_at": -1, "key": 1},
        },
    ),
    _partial("deadline", {"deadline": 1}, {"deadline": {"$exists": True}}),
    _partial("leased_until", {"leased_until": 1}, {"leased_until": {"$exists": True}}),
    _partial("unannounced", {"updated_at": 1}, {"is_announced": False}),
    _partial("ended_at", {"ended_at": 1}, {"ended_at": {"$exists": True}}),
]


def id_of(account: str, key: str) -> str:
    """Return the id of a document.  Names have no control characters, so it stands for one pair."""
    return f"{account}\x1f{key}"


def after(seconds: float) -> Document:
    """Return the expression of the time so many seconds from now."""
    return {"$add": [NOW, round(seconds * 1000)]}


def is_before(name: str, seconds: float = 0.0, operator: str = "$lt") -> Document:
    """Return the condition that a field is there, and is a time more than so many seconds ago."""
    return {name: {"$exists": True}, "$expr": {operator: [f"${name}", after(-seconds)]}}


def is_at_or_before(name: str, seconds: float = 0.0) -> Document:
    """Return the condition that a field is there, and is a time at least so many seconds ago."""
    return is_before(name, seconds, "$lte")


def _encoded(value: Any) -> Any:
    if isinstance(value, TaskState):
        return value.value
    if isinstance(value, Cursor):
        return value._asdict()
    return value


def _literal(value: Any) -> Any:
    # A text may begin with the dollar that begins an expression.
    return REMOVED if value is None else {"$literal": _encoded(value)}


def as_task(row: Document) -> Task:
    """Return the task in a document."""
    fields = {name: row[name] for name in _OTHERS if name in row}
    for name in _TIMES:
        time: datetime | None = row.get(name)
        fields[name] = time.timestamp() if time is not None else None
    fields["state"] = TaskState(row["state"])
    fields["former"] = tuple(row["former"])
    if "cursor" in row:
        fields["cursor"] = Cursor(**row["cursor"])
    return Task(**fields, input=row.get("input"))


def claim_pipeline(claim: Claim, by: ObjectId) -> list[Document]:
    """Return what begins a run, or leaves the document as it is, see `ITasks.claim`."""
    is_new = {"$eq": [{"$type": "$run"}, "missing"]}
    run = {"$literal": claim.run}
    can_follow = {
        "$and": [
            "$is_done",
            "$is_announced",
            {"$ne": ["$run", run]},
            {"$not": [{"$in": [run, {"$ifNull": ["$former", []]}]}]},
        ]
    }
    is_kept = {"$not": [{"$or": [is_new, can_follow]}]}
    former = {"$concatArrays": [["$run"], "$former"]}
    fields = Task(
        claim.account,
        claim.key,
        claim.run,
        TaskState.SUBMITTED,
        0.0,
        0.0,
        patience=claim.patience,
        digest=claim.digest,
        input=claim.input,
        input_type=claim.input_type,
    )
    values = {name: getattr(fields, name) for name in (*_OTHERS, "input")}
    new: Document = {
        "_id": "$_id",
        **{name: _literal(value) for name, value in values.items() if value is not None},
        "former": {"$cond": [is_new, [], {"$slice": [former, FORMER_RUNS]}]},
        "is_done": {"$literal": False},
        "by": by,
        "submitted_at": NOW,
        "updated_at": NOW,
    }
    if claim.deadline_in != NEVER:
        new["deadline"] = after(claim.deadline_in)
    if claim.input is not None:
        new["leased_until"] = after(claim.lease)
    return [{"$replaceWith": {"$cond": [is_kept, "$$ROOT", new]}}]


def change_pipeline(
    changes: Mapping[str, Any], by: ObjectId, deadline_in: float | None, lease: float | None
) -> list[Document]:
    """Return what changes a document; see `ITasks.change`."""
    fields: Document = {"updated_at": NOW, "by": by}
    if deadline_in is not None:
        fields["deadline"] = after(deadline_in) if deadline_in != NEVER else REMOVED
    if lease is not None:
        fields["leased_until"] = after(lease)
    state = changes.get("state")
    if state is TaskState.RUNNING:
        fields["started_at"] = {"$ifNull": ["$started_at", NOW]}
    if state is not None and state.is_done:
        fields.update(is_done={"$literal": True}, ended_at=NOW, deadline=REMOVED, input=REMOVED)
    fields.update((name, _literal(value)) for name, value in changes.items())
    has_input = {"$ne": [{"$type": "$input"}, "missing"]}
    lease_if_any = {"$cond": [has_input, "$leased_until", REMOVED]}
    return [{"$set": fields}, {"$set": {"leased_until": lease_if_any}}]


def presence_pipeline(seconds: float, longer_than: float, by: ObjectId) -> list[Document]:
    """
    Return what notes that an instance is there, as `task_changes.moved_by` says.

    A gap is added to ``moves``: the deadlines are moved by it later.
    """
    beat, longest = round(seconds * 1000), round(longer_than * 1000)
    is_new = {"$eq": [{"$type": "$until"}, "missing"]}
    late: Document = {"$subtract": [NOW, "$until"]}  # negative if it is early
    ahead = {"$add": [late, beat]}
    set_back = {"$cond": [{"$lt": [ahead, -longest]}, ahead, 0]}
    gap = {"$cond": [is_new, 0, {"$cond": [{"$gt": [late, longest]}, late, set_back]}]}
    is_moved = {"$ne": ["$gap", 0]}
    until = {"$cond": [is_moved, after(seconds), {"$max": ["$until", after(seconds)]}]}
    move = {"by": by, "milliseconds": "$gap", "at": NOW}
    moves = {"$ifNull": ["$moves", []]}
    return [
        {"$set": {"gap": gap}},
        {
            "$set": {
                "until": until,
                "moves": {"$cond": [is_moved, {"$concatArrays": [moves, [move]]}, moves]},
            }
        },
    ]


def move_update(move: Document) -> Document:
    """Return the update that moves all deadlines of tasks from before a gap was found, once."""
    fields: Document = {
        "deadline": {"$add": ["$deadline", move["milliseconds"]]},
        "moves": {"$concatArrays": [{"$ifNull": ["$moves", []]}, [move["by"]]]},
    }
    if move["milliseconds"] < 0:
        is_leased = {"$ne": [{"$type": "$leased_until"}, "missing"]}
        lease = {"$add": ["$leased_until", move["milliseconds"]]}
        fields["leased_until"] = {"$cond": [is_leased, lease, REMOVED]}
    which = {"deadline": {"$exists": True}, "moves": {"$ne": move["by"]}}
    if move["milliseconds"] > 0:
        which["submitted_at"] = {"$lt": move["at"]}
    return {"q": which, "u": [{"$set": fields}], "multi": True}
