"""What the documentation names is there: options and layers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.commands import run, token
from asyncplumber.option_list import FLAGS, GROUPS
from tests.unit.test_architecture import LAYERS, ROOT

# Options of other programs that the pages show.
OTHERS = {
    *("also", "contestant", "docs", "fault", "json", "only", "plot", "profile"),  # benchmarks
    *("scenario", "seed", "soak", "show", "rounds", "seconds"),
    *("retry", "retry-connrefused"),  # curl
    *("db", "oplog", "drop"),  # mongodump, mongorestore
    *("pidfile", "logfile", "logger", "syslog", "help", "version", "uid"),  # twistd
    *("loglevel", "with-scheduler", "worker-class"),  # celery, rq
    *("enable-optimizations",),  # Python's configure
}


def pages() -> Iterator[Path]:
    """Yield the pages that users and contributors read."""
    yield from sorted((ROOT / "docs").rglob("*.rst"))
    yield from (ROOT / name for name in ("README.rst", "CONTRIBUTING.rst", "SECURITY.rst"))


class DocumentationTests(SynchronousTestCase):
    """The pages beside the code."""

    def test_each_option_that_a_page_names_exists(self) -> None:
        """Also those in the files for nginx, HAProxy, systemd and Docker."""
        known = {option.name for options in GROUPS.values() for option in options}
        known |= set(FLAGS) | OTHERS
        for command in (run.Command(), token.Command()):
            known |= {name.rstrip("=") for name in command.longOpt}
        examples = sorted((ROOT / "docs/examples").iterdir())
        for page in [*pages(), *(path for path in examples if path.is_file())]:
            text = page.read_text(encoding="utf-8")
            named = set(re.findall(r"(?<![\w-])--([a-z][\w-]*\w)", text))
            unknown = named - known
            if page.parent.name == "examples":
                unknown -= {
                    "bind_ip_all",
                    "build",
                    "eval",
                    "from",
                    "from-file",
                    "from-literal",
                    "no-cache-dir",
                    "nodaemon",
                    "quiet",
                    "replSet",
                    "up",
                }
            self.assertEqual(unknown, set(), page)

    def test_the_page_about_the_architecture_lists_the_layers(self) -> None:
        """All of them, from the bottom up, as the test of the layers has them."""
        text = (ROOT / "docs/explanation/architecture.rst").read_text(encoding="utf-8")
        rows = re.findall(r"^   \* - ((?:``\w+``(?:, )?)+)$", text, re.MULTILINE)
        shown = [re.findall(r"``(\w+)``", row) for row in rows]
        flat = [name for names in shown for name in names]
        self.assertEqual(sorted(flat), sorted(name for names in LAYERS for name in names))
        order = {name: level for level, names in enumerate(LAYERS) for name in names}
        levels = [order[name] for name in flat]
        self.assertEqual(levels, sorted(levels))
