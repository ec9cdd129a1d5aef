"""
A command as a child process: what it prints is passed on and kept, signals are passed on to it.

Needs only the standard library, and the main thread of a process.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

STDERR_LENGTH = 4000  # bytes at the end of standard error that are kept
_CHUNK = 64 * 1024  # bytes
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # the statuses of a shell
SIGNALED = 128  # a shell adds to it the number of the signal that ended a command

_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# A key of the terminal sends these to all processes of its foreground: to the child as well.
_KEYS = frozenset({signal.SIGINT, signal.SIGQUIT})


class Child:
    """
    Runs one command.

    Attributes:
        stdout: What it printed, None if that is more than the limit or is not kept.
        stdout_size: How many bytes it printed.
        stderr: The end of its standard error.
        signals: The signals that this process got meanwhile and that end a process.
        is_told_to_stop: Whether ``terminate`` was called.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], limit: int | None) -> None:
        """
        Args:
            command: The program and its arguments.
            env: Its environment.
            limit: The most bytes of its output that are kept; None leaves the output alone.
        """
        self._command, self._env, self._limit = command, env, limit
        self._kept = bytearray()
        self._stderr = bytearray()
        self.stdout_size = 0
        self.signals: list[signal.Signals] = []
        self.is_told_to_stop = False
        self._process: subprocess.Popen[bytes] | None = None
        self._selector = selectors.DefaultSelector()

    @property
    def stdout(self) -> bytes | None:
        """What it printed; None if that is more than the limit, or is not kept."""
        is_kept = self._limit is not None and self.stdout_size <= self._limit
        return bytes(self._kept) if is_kept else None

    @property
    def stderr(self) -> str:
        """The end of its standard error."""
        return self._stderr.decode(errors="replace").strip()

    @property
    def stdout_end(self) -> str:
        """The end of what it printed, as far as it is kept."""
        return self._kept[-STDERR_LENGTH:].decode(errors="replace").strip()

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM.  Any thread may call this, also before the command runs."""
        self.is_told_to_stop = True
        self._signal(signal.SIGTERM)

    def run(self) -> int:
        """
        Run the command until it ends.

        A process that it leaves behind is not waited for, even if that could still print.

        Returns:
            Its status, or `SIGNALED` and the number of the signal that ended it.
        """
        wake, waker = os.pipe()
        for end in (wake, waker):
            os.set_blocking(end, False)
        before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        handlers = self._handle_signals()
        try:
            self._selector.register(wake, selectors.EVENT_READ, None)
            status = self._spawn()
            return self._follow() if status is None else status
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            self._selector.close()
            for end in (wake, waker):
                os.close(end)

    def _spawn(self) -> int | None:
        """Start the command; return a status if that is not possible."""
        pipe = None if self._limit is None else subprocess.PIPE
        try:
            # The command is the user's own.
            process = subprocess.Popen(  # noqa: S603
                self._command, env=self._env, stdout=pipe, stderr=pipe
            )
        except FileNotFoundError as error:
            return self._refuse(NOT_FOUND, error)
        except (OSError, ValueError) as error:
            return self._refuse(NOT_EXECUTABLE, error)
        self._process = process
        for source, sink, keep in (
            (process.stdout, 1, self._keep_stdout),
            (process.stderr, 2, self._keep_stderr),
        ):
            if source is not None:
                os.set_blocking(source.fileno(), False)
                self._selector.register(source, selectors.EVENT_READ, (sink, keep))
        for number in [*self.signals, *([signal.SIGTERM] if self.is_told_to_stop else [])]:
            self._signal(number)  # it came before there was a process
        return None

    def _refuse(self, status: int, error: Exception) -> int:
        reason = getattr(error, "strerror", None) or str(error)
        text = f"{self._command[0]}: {reason}"
        self._keep_stderr(text.encode())
        with suppress(OSError):
            os.write(2, text.encode() + b"\n")
        return status

    def _follow(self) -> int:
        assert self._process is not None
        while (status := self._process.poll()) is None:
            for key, _ in self._selector.select():
                self._read(key)
        for key in list(self._selector.get_map().values()):
            while key.data is not None and self._read(key):
                pass  # what it printed before it ended is in the pipe
        return SIGNALED - status if status < 0 else status

    def _read(self, key: selectors.SelectorKey) -> bool:
        """Read once, and pass it on; return whether there may be more."""
        if key.data is None:  # a signal has come, and was handled
            with suppress(BlockingIOError):
                os.read(key.fd, _CHUNK)
            return False
        try:
            chunk = os.read(key.fd, _CHUNK)
        except BlockingIOError:
            return False
        sink, keep = key.data
        keep(chunk)
        if chunk and _write(sink, chunk):
            return True
        # It has closed its output, or nobody reads ours: let it hear of that as without us.
        source: IO[Any] = key.fileobj  # type: ignore[assignment]
        self._selector.unregister(source)
        source.close()
        return False

    def _keep_stdout(self, chunk: bytes) -> None:
        self.stdout_size += len(chunk)
        self._kept += chunk
        if self._limit is not None and self.stdout_size > self._limit:
            del self._kept[:-STDERR_LENGTH]

    def _keep_stderr(self, chunk: bytes) -> None:
        self._stderr += chunk
        del self._stderr[:-STDERR_LENGTH]

    def _handle_signals(self) -> dict[int, Any]:
        """Have signals passed on from now on; return the handlers before."""
        before: dict[int, Any] = {
            signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None)  # it wakes the selector
        }
        for number in _PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores one for its child too
                before[number] = signal.signal(number, self._passing_on(number))
        return before

    def _passing_on(self, number: signal.Signals) -> Callable[..., None]:
        def pass_on(*_: object) -> None:
            if number not in (signal.SIGUSR1, signal.SIGUSR2):
                self.signals.append(number)
            if not (number in _KEYS and _has_the_terminal()):
                self._signal(number)

        return pass_on

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(OSError):
                self._process.send_signal(number)


def open_standard_descriptors() -> None:
    """
    Open those of the descriptors 0, 1 and 2 that are closed, as ``/dev/null``.

    Otherwise the next connection would get that number, and what a command prints would be sent
    over it.
    """
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        os.set_inheritable(null, True)
        null = os.dup(null)
    os.close(null)


def _write(sink: int, data: bytes) -> bool:
    """Write all; return False if nobody reads it."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(sink, view) :]
        except BlockingIOError:  # the descriptor is shared with somebody who wants it so
            with selectors.DefaultSelector() as selector:
                selector.register(sink, selectors.EVENT_WRITE)
                selector.select()
        except OSError:
            return False
    return True


def _has_the_terminal() -> bool:
    """Whether this process is in the foreground of a terminal, whose keys send signals."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
