"""
One command that measures each contestant under the same loads on the loopback interface.

Each run has a fresh server.  The contestants of a scenario run one after the other, and rounds are
interleaved, so that everything else that happens on the machine affects all alike.  How much that
was is measured, and disturbed runs are marked.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from textwrap import indent

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":  # as a file: its neighbours are a package, not modules that lie about
    sys.path[0] = str(HERE.parent)

from benchmarks import machine, plot, report
from benchmarks.generator import Figures, NoCompiler, build
from benchmarks.hotspots import hotspots
from benchmarks.scenarios import FAULTS, SCENARIOS, Scenario
from benchmarks.servers import (
    Contestant,
    Failed,
    Server,
    also,
    klein_hub,
    nchan,
    node_ws,
    on_mongodb,
    project,
)
from benchmarks.soak import sentence, soak

_SQLITE = "--store sqlite:{folder}/events"


def contestants(field: str, extra: list[Contestant]) -> list[Contestant]:
    """Return the contestants of a field, installed or not.  The baseline is the first."""
    if field == "stores":
        full = project("sqlite-full", _SQLITE + "?synchronous=full")
        return [project("memory"), project("sqlite", _SQLITE), full, on_mongodb()]
    if field == "mongodb":
        return [on_mongodb()]
    if field == "workers":
        return [project("one-worker", _SQLITE), project("two-workers", _SQLITE + " --workers 2")]
    if field == "own":
        return [project(), project("sqlite", _SQLITE), *extra]
    return [nchan(), project(), *extra, node_ws(), klein_hub()]


def measured(scenario: Scenario, contestant: Contestant, seconds: float) -> Figures:
    """Measure one run, and how much CPU other processes used meanwhile."""
    row: Figures = {
        "scenario": scenario.name,
        "contestant": contestant.name,
        "at": time.strftime("%H:%M:%S"),
    }
    try:
        with Server(contestant, seconds) as server:
            busy, server_cpu, children = (
                machine.busy(),
                machine.cpu(machine.family(server.pids[0])),
                os.times(),
            )
            began = time.monotonic()
            row |= scenario.measure(server)
            took, after = time.monotonic() - began, os.times()
            ours = machine.cpu(machine.family(server.pids[0])) - server_cpu
            ours += after.user + after.system + after.children_user + after.children_system
            ours -= (
                children.user + children.system + children.children_user + children.children_system
            )
            row["others"] = round(max(0.0, machine.busy() - busy - ours) / took, 3)
    except Failed as error:
        row |= {"ok": False, "error": str(error), "others": 0.0}
    return row


def progress(row: Figures, scenario: Scenario) -> str:
    """Return the line that is printed after a run."""
    first = scenario.columns[0]
    value = f"{row[first.key]:{first.format}} {first.heading}" if first.key in row else ""
    wrong = (
        ""
        if row["ok"]
        else "  FAILED " + str(row.get("error") or {fault: row.get(fault) for fault in FAULTS})
    )
    who = f"{scenario.name:11} {row['contestant']:15}"
    return f"{row['at']}  {who} {value:28} others {row['others']:.2f}{wrong}"


def rounds(chosen: list[Scenario], options: argparse.Namespace, run: Figures) -> None:
    """Measure everything, round by round."""
    extra = [also(text) for text in options.also]
    fields = {scenario.field: contestants(scenario.field, extra) for scenario in chosen}
    for name, missing in {
        one.name: one.missing for field in fields.values() for one in field if one.missing
    }.items():
        print(f"without {name}: {missing}", file=sys.stderr)
    for number in range(options.rounds):
        for scenario in chosen:
            for contestant in fields[scenario.field]:
                if contestant.missing or (scenario.needs and scenario.needs not in contestant.able):
                    continue
                if options.contestant and contestant.name not in options.contestant:
                    continue
                row = measured(scenario, contestant, options.seconds)
                run["results"].append({**row, "round": number + 1})
                print(progress(row, scenario), file=sys.stderr, flush=True)
        run["rounds"] = number + 1
        save(options, run)


def save(options: argparse.Namespace, run: Figures) -> None:
    """Write the files that the options name."""
    if options.json:
        options.json.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    if options.plot and run["results"]:
        options.plot.write_text(plot.svg(run))
    if options.docs:
        report.write_into(options.docs, "measured", picture(options) + text(run))


def picture(options: argparse.Namespace) -> str:
    """Return the reStructuredText of the plot.  Empty if there is none."""
    if not options.plot:
        return ""
    path = os.path.relpath(options.plot, options.docs.parent)
    alt = f"how many times the figure of {options.baseline} each server reaches in each scenario"
    return f".. image:: {path}\n   :alt: {alt}\n\n"


def text(run: Figures) -> str:
    """Return the tables and the results of soaks."""
    return "\n\n".join(
        [*([report.tables(run)] if run["results"] else []), *map(sentence, run["soaks"])]
    )


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [scenario.name for scenario in SCENARIOS]
    only = "only these: " + ", ".join(names)
    parser.add_argument(
        "--scenario", nargs="+", choices=names, default=names, metavar="NAME", help=only
    )
    parser.add_argument("--contestant", nargs="+", metavar="NAME", help="only these")
    another = "another server: its command, with {port} in it, and {folder} for an empty folder"
    parser.add_argument("--also", action="append", default=[], metavar="NAME=COMMAND", help=another)
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument(
        "--seconds", type=float, default=3, help="that a load publishes at most; default: 3"
    )
    parser.add_argument(
        "--baseline", default="nchan", help="whom all are compared with; default: nchan"
    )
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="watch the memory of the project instead"
    )
    parser.add_argument(
        "--profile",
        choices=names,
        metavar="NAME",
        help="show where the project's time goes instead (py-spy)",
    )
    parser.add_argument(
        "--store", default="memory:", help="of the project, for --profile; default: memory:"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything that was measured"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.svg", help="write the ratios as a picture"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FILE.rst",
        help="write the tables between the marks of this page",
    )
    parser.add_argument(
        "--add", type=Path, metavar="FILE.json", help="take the soaks of another run as well"
    )
    parser.add_argument(
        "--show",
        type=Path,
        metavar="FILE.json",
        help="measure nothing; take what was written before",
    )
    return parser


def profile(options: argparse.Namespace) -> int:
    """Print where the CPU time goes."""
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == options.profile)
    figures, found = hotspots(
        scenario, project(options.store, f"--store {options.store}"), options.seconds
    )
    if options.docs:
        report.write_into(options.docs, "profile", "::\n\n" + indent(found, "    "))
    print(found)
    return 0 if figures["ok"] else 1


def run_all(options: argparse.Namespace) -> Figures:
    """Measure what the command line asks for."""
    run: Figures = {
        "machine": machine.description(),
        "started": time.strftime("%Y-%m-%d %H:%M"),
        "baseline": options.baseline,
    }
    run |= {"rounds": 0, "results": [], "soaks": []}
    if options.soak:
        # so that the histories are full soon, and what grows then is a leak
        kept = "--history-length 100"
        for store in (
            project("memory", f"--store memory: {kept}"),
            project("sqlite", f"{_SQLITE} {kept}"),
        ):
            run["soaks"].append(soak(store, options.soak))
    else:
        rounds(
            [scenario for scenario in SCENARIOS if scenario.name in options.scenario], options, run
        )
    return run


def main(argv: list[str] | None = None) -> int:
    """
    Run the command.

    Returns:
        0 if no run had a fault, 1 if one had, 2 if nothing can be measured on this machine.
    """
    options = arguments().parse_args(argv)
    if options.show:
        run: Figures = json.loads(options.show.read_text())
    else:
        try:
            build()
        except NoCompiler as error:
            print(error, file=sys.stderr)
            return 2
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        if options.profile:
            return profile(options)
        run = run_all(options)
    if options.add:
        run["soaks"] += json.loads(options.add.read_text())["soaks"]
    save(options, run)
    print(text(run))
    return 0 if all(row["ok"] for row in [*run["results"], *run["soaks"]]) else 1


if __name__ == "__main__":
    sys.exit(main())
