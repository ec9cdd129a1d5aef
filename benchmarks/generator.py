"""The load generator in C (``load/``): compile it when it is first used, and run it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).parent / "load"

Figures = dict[str, Any]


class NoCompiler(Exception):
    """This machine has no C compiler."""


def compiler() -> str | None:
    """Return the C compiler: ``$CC``, cc, gcc or clang.  None if there is none."""
    return next(
        filter(None, map(shutil.which, filter(None, [os.environ.get("CC"), "cc", "gcc", "clang"]))),
        None,
    )


def build() -> Path:
    """
    Return the path of the load generator.  Compile it if its source is newer.

    Raises:
        NoCompiler: there is no C compiler.
    """
    folder = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asyncplumber-benchmarks"
    )
    program, sources = folder / "load", sorted(_SOURCE.glob("*.[ch]"))
    if program.exists() and program.stat().st_mtime > max(
        source.stat().st_mtime for source in sources
    ):
        return program
    command = compiler()
    if command is None:
        raise NoCompiler("the load generator needs a C compiler (cc, gcc, clang or $CC)")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / "load"
        subprocess.run(
            [command, "-O2", "-o", made, *(source for source in sources if source.suffix == ".c")],
            check=True,
        )
        made.replace(program)
    return program


class Load:
    """A running load generator."""

    def __init__(self, port: int, pids: Sequence[int], arguments: str) -> None:
        command = [
            str(build()),
            "--port",
            str(port),
            "--pids",
            ",".join(map(str, pids)),
            *shlex.split(arguments),
        ]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def result(self) -> Figures:
        """
        Wait for its end, and return the figures.

        ``ok`` tells whether every subscriber got every event once and in order.
        """
        output, errors = self._process.communicate()
        try:
            figures: Figures = json.loads(output)
        except ValueError:
            figures = {
                "error": (
                    errors or f"the load generator ended with {self._process.returncode}"
                ).strip()
            }
        if errors:
            figures["error"] = errors.strip()[:400]
        figures["ok"] = self._process.returncode == 0
        return figures

    def stop(self) -> None:
        """End it early."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
