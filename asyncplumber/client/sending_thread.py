"""The thread of an outbox: sends what waits, one after the other, and does its beats."""

from __future__ import annotations

import logging
import threading
import time as time_module
from collections.abc import Callable
from typing import Any

from asyncplumber.client.beats import Schedule, ThreadBeats
from asyncplumber.client.losses import Losses
from asyncplumber.client.request import Request
from asyncplumber.client.response import Refused, interpret, interpret_report
from asyncplumber.client.waiting import Entry, Kind, WaitingEntries

EXIT_PAUSE = 0.25  # seconds; the longest pause between attempts while a caller waits in ``flush``

_log = logging.getLogger(__name__)


class _Expired(Exception):
    """It waited too long."""

    def __str__(self) -> str:
        return "the plumber was away for too long"


class _Abandoned(Exception):
    """The outbox was closed during the attempt; there is no further one."""

    def __str__(self) -> str:
        return "the outbox was closed"


class SendingThread:
    """
    What an outbox has in one process: what waits, and a thread while there is work for it.

    Threads may share it.  A signal handler may call it at any moment.
    """

    def __init__(
        self,
        exchange: Callable[..., Any],
        queue: WaitingEntries,
        losses: Losses,
        clock: Callable[[], float],
        starting: Callable[[], None],
    ) -> None:
        """
        Args:
            exchange: ``Sender.exchange`` of a sender that pauses by ``pause``.
            queue: What waits.
            losses: Told what is lost.
            clock: Returns seconds, and is monotonic.
            starting: Called before the thread starts.
        """
        self._exchange = exchange
        self._queue = queue
        self._losses = losses
        self._clock = clock
        self._starting = starting
        self._schedule = Schedule()
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None
        self._abandoned: Entry | None = None  # was being sent when the outbox was closed
        self._is_away = False  # whether the last that was tried got no answer

    def put(self, entry: Entry, wait: float) -> bool:
        """Add an entry; see ``Outbox.put``."""
        with self._changed:
            given_way = self._queue.add(entry, self._clock())
            for lost in [entry] if given_way is None else given_way:
                self._losses.report(lost.request.id, "the outbox is full")
            if given_way is None:
                return False
            self._ensure_thread()
            self._changed.notify_all()
            if wait > 0 and not self._is_away and self._thread is not None:
                is_over = self._changed.wait_for(
                    lambda: self._is_away or entry not in self._queue, wait
                )
                # Whoever comes next does not wait as well.
                self._is_away = self._is_away or not is_over
                return entry not in self._queue
            return False

    def beats(self, beat: Callable[[], None], interval: float) -> ThreadBeats:
        """Return beats of this thread, one per ``interval`` seconds."""

        def stop(beats: ThreadBeats) -> None:
            with self._changed:
                self._schedule.remove(beats)
                self._changed.notify_all()

        beats = ThreadBeats(beat, interval, stop)
        with self._changed:
            self._schedule.put(beats, self._clock() + interval)
            self._ensure_thread()
            self._changed.notify_all()
        return beats

    def wait_until_sent(self, seconds: float) -> int:
        """Return how many entries are left after so many seconds, or earlier if that is 0."""
        self._hurry.set()
        with self._changed:
            self._changed.notify_all()
            self._ensure_thread()  # a process that could start no thread may have left entries
            self._changed.wait_for(lambda: not self._queue, seconds)
            waiting = len(self._queue)
        self._hurry.clear()
        return waiting

    def close(self) -> str | None:
        """
        Drop what waits.

        Returns:
            The id of what is being sent now, and is lost unless that succeeds; None if nothing is.
        """
        with self._changed:
            self._abandoned = sending = self._queue.sending
            for entry in self._queue.clear():
                self._losses.add(entry.request.id, "the outbox was closed")
        return None if sending is None else sending.request.id

    def hand_over(self, wait: float) -> list[Request]:
        """
        Return what waits, in order and as it would be sent now, and keep nothing of it.

        Waits before, until all is sent or the plumber is known to be away, for so many seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._queue or self._is_away, wait)
            self._abandoned = sending = self._queue.sending
            entries = [*([] if sending is None else [sending]), *self._queue.clear()]
            if sending is not None:
                self._queue.remove(sending)
        return [entry.prepared() for entry in entries]

    def pause(self, seconds: float) -> None:
        """Wait between two attempts, for a moment only while a caller waits in ``flush``."""
        with self._changed:
            self._is_away = True
            self._changed.notify_all()
        if self._abandoned is None and self._hurry.wait(seconds):
            time_module.sleep(min(seconds, EXIT_PAUSE))
        if self._abandoned is not None:
            raise _Abandoned

    def _ensure_thread(self) -> None:
        """Start the thread if there is work for it.  The caller holds the lock."""
        is_idle = not self._queue and not self._schedule
        if is_idle or (self._thread is not None and self._thread.is_alive()):
            return
        self._starting()
        thread = threading.Thread(target=self._run, name="asyncplumber-outbox", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError as error:
            # There are too many, or the interpreter ends.  The next call tries again.
            self._thread = None
            _log.warning("the outbox has no thread now: %s", error)

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            try:
                answer = self._answer(entry)
            except Exception as error:
                answer = error
            self._settle(entry, answer)
            self._losses.log()

    def _next(self) -> Entry | None:
        """Return what to send next, as soon as there is something; None ends the thread."""
        while True:
            with self._changed:
                due = self._schedule.take(self._clock())
            for beats in due:
                beats.beat()
            with self._changed:
                now = float("inf") if self._hurry.is_set() else self._clock()
                found = self._queue.next(now)
                if isinstance(found, Entry):
                    # It stays in the queue while it is sent, so that no other of its run overtakes.
                    self._queue.sending = found
                    return found
                moment = min(filter(None, (found, self._schedule.next())), default=None)
                if moment is None:
                    self._thread = None
                    self._changed.notify_all()
                    return None
                self._changed.wait(max(0.0, moment - self._clock()))

    def _answer(self, entry: Entry) -> Any:
        """
        Send an entry until there is an answer.

        Raises:
            Refused, Undelivered: As ``Sender.exchange`` does.
            _Expired: It has waited too long, and the plumber is away.
        """
        left = entry.expires - self._clock()
        if left <= 0 and self._is_away:
            raise _Expired
        understand = interpret if entry.kind is Kind.EVENT else interpret_report
        # A process that was suspended finds its entries expired.  Each has one attempt.
        return self._exchange(entry.prepared(), understand, left if left > 0 else None)

    def _settle(self, entry: Entry, answer: Any) -> None:
        """Take the entry out of the queue, and tell its run what became of it."""
        follower = None
        if entry.settle is not None:
            try:
                follower = entry.settle(answer)
            except Exception:
                _log.exception("cannot use the answer to report %s", entry.request.id)
        with self._changed:
            self._is_away = isinstance(answer, Exception) and not isinstance(answer, Refused)
            self._abandoned = None
            self._queue.remove(entry)
            if follower is not None:
                follower.expires = entry.expires
                self._queue.put_first(follower)
            elif isinstance(answer, Exception) and not _is_conflict(entry, answer):
                self._losses.report(entry.request.id, str(answer) or answer.__class__.__name__)
            self._changed.notify_all()


def _is_conflict(entry: Entry, answer: Exception) -> bool:
    """Whether a report was refused because its run has ended, or is not the newest."""
    return entry.owner is not None and isinstance(answer, Refused) and answer.status == 409
