"""The tables of a SQLite file."""

from __future__ import annotations

import sqlite3

# An account has a number, which keeps the two indexes of `events` small.  Rows of `events` are in
# the order of their arrival: the events of one append share a page of the log, and the oldest come
# first without an index of their own.
_FIRST = """
CREATE TABLE accounts (number INTEGER PRIMARY KEY, account TEXT NOT NULL UNIQUE,
    epoch TEXT NOT NULL, head INTEGER NOT NULL, floor INTEGER NOT NULL, touched REAL NOT NULL);
CREATE TABLE events (account INTEGER NOT NULL, seq INTEGER NOT NULL, key TEXT NOT NULL,
    id TEXT NOT NULL, type TEXT NOT NULL, time TEXT NOT NULL, content_type TEXT NOT NULL,
    payload BLOB NOT NULL, stored REAL NOT NULL, UNIQUE (account, seq), UNIQUE (account, key));
CREATE TABLE instances (id TEXT PRIMARY KEY, url TEXT NOT NULL, lease TEXT NOT NULL,
    expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE hooks (account TEXT NOT NULL, instance TEXT NOT NULL,
    PRIMARY KEY (account, instance)) WITHOUT ROWID;
CREATE INDEX hooks_instance ON hooks (instance);
CREATE TABLE secrets (name TEXT PRIMARY KEY, secret TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE epochs (epoch TEXT PRIMARY KEY, began REAL NOT NULL) WITHOUT ROWID
"""
# AUTOINCREMENT gives each row a number that no row had before: a change of the largest one tells
# of each new row.  `sqlite_sequence` keeps it when all rows are deleted.
_REVOCATIONS = """
CREATE TABLE revocations (number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL,
    value TEXT NOT NULL, before REAL, expires REAL NOT NULL, UNIQUE (kind, value));
CREATE TABLE tickets (ticket TEXT PRIMARY KEY, expires REAL NOT NULL) WITHOUT ROWID
"""
# The bytes of the payloads that an account has: to add them up takes a look at each event.
_BYTES = """
ALTER TABLE accounts ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
UPDATE accounts SET bytes = (SELECT coalesce(sum(length(payload)), 0) FROM events
    WHERE events.account = accounts.number)
"""
# The columns of `tasks` are the attributes of `Task`, the large ones last: SQLite reads a row from
# its begin.  Indexes have rows only of the tasks that their reader looks for.
_TASKS = """
CREATE TABLE tasks (account TEXT NOT NULL, key TEXT NOT NULL, run TEXT NOT NULL,
    state TEXT NOT NULL, submitted_at REAL NOT NULL, updated_at REAL NOT NULL, started_at REAL,
    ended_at REAL, deadline REAL, patience REAL NOT NULL, progressed_at REAL NOT NULL,
    epoch TEXT, seq INTEGER, is_announced INTEGER NOT NULL, is_late INTEGER NOT NULL,
    is_cancel_requested INTEGER NOT NULL, attempts INTEGER NOT NULL, leased_until REAL,
    end_id TEXT NOT NULL, former TEXT NOT NULL, digest BLOB NOT NULL, input_type TEXT NOT NULL,
    result_type TEXT NOT NULL, error BLOB, progress BLOB, result BLOB, input BLOB,
    PRIMARY KEY (account, key));
CREATE INDEX tasks_of_account
    ON tasks (account, (ended_at IS NOT NULL), submitted_at DESC, key);
CREATE INDEX tasks_deadline ON tasks (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX tasks_leased ON tasks (leased_until) WHERE leased_until IS NOT NULL;
CREATE INDEX tasks_unannounced ON tasks (updated_at) WHERE is_announced = 0;
CREATE INDEX tasks_ended ON tasks (ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE task_presence (number INTEGER PRIMARY KEY, until REAL NOT NULL);
CREATE TABLE callback_urls (digest BLOB PRIMARY KEY, account TEXT NOT NULL, expires REAL NOT NULL,
    task TEXT NOT NULL, run TEXT NOT NULL, ends INTEGER NOT NULL, scheme TEXT NOT NULL,
    secret TEXT NOT NULL, pointer TEXT NOT NULL, type_prefix TEXT NOT NULL, id TEXT NOT NULL)
    WITHOUT ROWID;
CREATE INDEX callback_urls_id ON callback_urls (account, id);
CREATE INDEX callback_urls_run ON callback_urls (account, task, run);
CREATE INDEX callback_urls_expires ON callback_urls (expires)
"""
# What leads from each version of the schema to the next.
_STEPS = (_FIRST, _REVOCATIONS, _BYTES, _TASKS)
SCHEMA_VERSION = len(_STEPS)


def prepare(connection: sqlite3.Connection) -> None:
    """
    Create the tables that are missing, unless another process did.

    Raises:
        ValueError: A newer version of the program made the file.  The message is for the user.
        sqlite3.Error: The file cannot be read or written.
    """
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"a newer asyncplumber made it (schema {version}; this one knows {SCHEMA_VERSION})"
        )
    for step in _STEPS[version:]:
        for statement in step.split(";"):
            connection.execute(statement)
    if version < SCHEMA_VERSION:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
