"""
The benchmarks work, and find what is wrong.

Tiny loads, with the real load generator and real servers.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from xml.dom.minidom import parseString

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from benchmarks import auth, plot, report
from benchmarks.generator import Load, NoCompiler, build, compiler
from benchmarks.run import main
from benchmarks.scenarios import SCENARIOS, merged
from benchmarks.servers import Server, project

# A server that sends everything that is posted to everybody, TIMES times.
_LIAR = """
import asyncio, sys, re

async def serve(reader, writer):
    try:
        await talk(reader, writer)
    except asyncio.IncompleteReadError:
        pass

async def talk(reader, writer):
    while head := await reader.readuntil(b"\\r\\n\\r\\n"):
        if head.startswith(b"GET"):
            streams.append(writer)
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\n\\r\\n")
            continue
        body = await reader.readexactly(int(re.search(rb"Content-Length: (\\d+)", head)[1]))
        writer.write(b"HTTP/1.1 201 Created\\r\\nContent-Length: 0\\r\\n\\r\\n")
        for stream in streams:
            for _ in range(TIMES):
                stream.write(b"data: " + body + b"\\n\\n")

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

streams = []
asyncio.run(main())
"""


def need_compiler() -> None:
    """Skip the test if there is no C compiler: the project does not need one."""
    if compiler() is None:
        raise SkipTest("no C compiler (cc, gcc, clang or $CC): the load generator cannot be built")


def rows(
    *rates: float, others: float = 0.0, name: str = "asyncplumber", ok: bool = True
) -> list[dict[str, object]]:
    """Return results of the scenario fanout."""
    return [
        {
            "scenario": "fanout",
            "contestant": name,
            "deliveries_per_s": rate,
            "others": others,
            "ok": ok,
            "missing": 0 if ok else 7,
        }
        for rate in rates
    ]


class LoadTests(SynchronousTestCase):
    """The load generator with a real server."""

    def setUp(self) -> None:
        need_compiler()

    def test_it_measures_and_checks_every_way(self) -> None:
        """All transports, batches and resumption: everything arrives, and there are figures."""
        with Server(project()) as server:
            loads = {
                "websocket": "--accounts 3 --subscribers 4 --events 60 --publishers 2",
                "sse": "--accounts 3 --subscribers 4 --events 60 --publishers 2 --sse",
                "batch": "--accounts 2 --subscribers 2 --events 60 --batch 10",
                "resume": "--accounts 2 --subscribers 3 --resume 5",
            }
            found = {
                name: server.load(f"{load} --prefix {name} --patience 3 --settle 0.05")
                for name, load in loads.items()
            }
            self.assertEqual(
                {name: figures["ok"] for name, figures in found.items()},
                dict.fromkeys(loads, True),
                found,
            )
            self.assertEqual(
                [figures["deliveries"] for figures in found.values()], [240, 240, 120, 30]
            )
            for name in ("websocket", "sse", "batch"):
                self.assertGreater(found[name]["us_per_event"], 0)
                self.assertGreater(found[name]["last_p99_ms"], 0)

    def test_without_a_compiler_it_says_so(self) -> None:
        """`build` names what is missing."""
        self.patch(
            build.__globals__["os"], "environ", {"PATH": "/nowhere", "XDG_CACHE_HOME": "/nowhere"}
        )
        with self.assertRaisesRegex(NoCompiler, "needs a C compiler"):
            build()


class LiarTests(SynchronousTestCase):
    """The load generator with a server that makes mistakes."""

    def liar(self, times: int, arguments: str) -> dict[str, object]:
        """Return the figures for a server that delivers each event ``times`` times, to all."""
        import subprocess

        need_compiler()
        command = [sys.executable, "-c", _LIAR.replace("TIMES", str(times))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                return Load(
                    int(server.stdout.readline()),
                    [server.pid],
                    f"--sse --events 10 --patience 0.3 --settle 0.05 {arguments}",
                ).result()
            finally:
                server.kill()

    def test_honest_it_has_no_fault(self) -> None:
        """The same server, delivering once."""
        found = self.liar(1, "--subscribers 2")
        self.assertTrue(found["ok"], found)

    def test_what_is_doubled_is_counted(self) -> None:
        """Each event arrives twice."""
        found = self.liar(2, "--subscribers 1")
        self.assertFalse(found["ok"])
        self.assertEqual(found["duplicates"], 10)

    def test_what_is_missing_is_counted(self) -> None:
        """Nothing is delivered."""
        found = self.liar(0, "--subscribers 2")
        self.assertFalse(found["ok"])
        self.assertEqual(found["missing"], 20)

    def test_what_others_should_get_is_counted(self) -> None:
        """Every account gets the events of all."""
        found = self.liar(1, "--accounts 2")
        self.assertFalse(found["ok"])
        self.assertEqual(found["wrong"], 10)


class RunTests(SynchronousTestCase):
    """The command."""

    def test_one_command_measures_and_writes(self) -> None:
        """A tiny run prints a table, and writes JSON, a picture and the page."""
        need_compiler()
        folder = Path(tempfile.mkdtemp(dir=self.mktemp_folder()))
        page = folder / "page.rst"
        page.write_text("before\n\n.. measured: begin\n\nold\n\n.. measured: end\n\nafter\n")
        files = [
            "--json",
            str(folder / "run.json"),
            "--plot",
            str(folder / "run.svg"),
            "--docs",
            str(page),
        ]
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(io.StringIO()):
            arguments = [
                "--scenario",
                "fanout",
                "--contestant",
                "asyncplumber",
                "--rounds",
                "1",
                "--seconds",
                "0.1",
                *files,
            ]
            self.assertEqual(main(arguments), 0, output.getvalue())
        self.assertIn("(``fanout``)", output.getvalue())
        run = json.loads((folder / "run.json").read_text())
        self.assertEqual([row["contestant"] for row in run["results"]], ["asyncplumber"])
        parseString((folder / "run.svg").read_bytes())
        filled = page.read_text()
        self.assertTrue(
            filled.startswith("before") and filled.endswith("after\n") and "deliveries/s" in filled,
            filled,
        )
        self.assertNotIn("old", filled)

    def mktemp_folder(self) -> str:
        """A folder of this test."""
        folder = self.mktemp()
        Path(folder).mkdir(parents=True)
        return folder


class AuthenticationTests(SynchronousTestCase):
    """`benchmarks.auth`, with few repetitions."""

    def test_it_measures_each_algorithm(self) -> None:
        """New and known, alone, in a POST and in a handshake."""
        out = io.StringIO()
        with redirect_stdout(out):
            self.assertEqual(auth.main(2), 0)
        lines = out.getvalue().splitlines()
        self.assertEqual(len(lines), 1 + 3 * 4 + 3)
        for line in lines[1:]:
            self.assertRegex(line, r"[0-9]\.[0-9]$")


class ReportTests(SynchronousTestCase):
    """From results to tables."""

    fanout = SCENARIOS[0]

    def test_medians_and_ratios(self) -> None:
        """The median of the rounds counts."""
        results = [*rows(10, 30, 20), *rows(40, 40, 40, name="nchan")]
        self.assertEqual(
            report.ratio(results, self.fanout, self.fanout.columns[0], "asyncplumber", "nchan"), 0.5
        )

    def test_disturbed_runs_count_only_if_there_are_no_others(self) -> None:
        """A run on a busy machine reads too low."""
        disturbed = rows(10, others=1.0)
        self.assertEqual(report.counted([*disturbed, *rows(30)]), rows(30))
        self.assertEqual(report.counted(disturbed), disturbed)

    def test_faulty_runs_do_not_count_and_show(self) -> None:
        """A figure that was measured while something was lost is useless."""
        table = report.table([*rows(10), *rows(99, ok=False)], self.fanout, "nchan")
        self.assertIn("7 missing", table)
        self.assertNotIn(" 99 ", table)

    def test_faults_of_several_loads_are_added(self) -> None:
        """A scenario of two loads is as bad as both together."""
        both = merged(
            {"a": {"ok": True, "missing": 0}, "b": {"ok": False, "missing": 2, "error": "lost"}}
        )
        self.assertEqual((both["ok"], both["missing"], both["error"]), (False, 2, "lost"))

    def test_a_page_without_marks_is_left_alone(self) -> None:
        """An error is better than a page that is overwritten."""
        page = Path(self.mktemp())
        page.write_text("a page")
        with self.assertRaises(ValueError):
            report.write_into(page, "measured", "tables")
        self.assertEqual(page.read_text(), "a page")

    def test_the_picture_has_a_bar_for_each_contestant(self) -> None:
        """The baseline is the line."""
        run = {
            "baseline": "nchan",
            "results": [*rows(20), *rows(40, name="nchan"), *rows(10, name="node-ws")],
        }
        bars = [
            shape
            for shape in parseString(plot.svg(run)).getElementsByTagName("rect")
            if shape.getAttribute("y") == "64"
        ]
        texts = [
            text.firstChild.data for text in parseString(plot.svg(run)).getElementsByTagName("text")
        ]
        self.assertEqual(len(bars), 1)
        self.assertIn("0.50 ×", texts)
        self.assertIn("0.25 ×", texts)
