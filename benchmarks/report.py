"""From results to tables: medians, ratios to the baseline, spread, faults, calm runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.generator import Figures
from benchmarks.scenarios import FAULTS, SCENARIOS, Column, Scenario, median

# CPUs that other processes of the machine used meanwhile: from there on a run reads too low
DISTURBED = 0.2

Results = Sequence[Figures]


def is_calm(row: Figures) -> bool:
    """Tell whether other processes used little CPU during a run."""
    return bool(row["others"] < DISTURBED)


def counted(rows: Results) -> list[Figures]:
    """Return the runs that count: the calm ones, or all if none was calm."""
    good = [row for row in rows if row["ok"]]
    return [row for row in good if is_calm(row)] or good


def chosen(results: Results, scenario: str, contestant: str) -> list[Figures]:
    """Return the runs of one contestant in one scenario."""
    return [
        row for row in results if row["scenario"] == scenario and row["contestant"] == contestant
    ]


def ratio(
    results: Results, scenario: Scenario, column: Column, contestant: str, baseline: str
) -> float | None:
    """Return a figure as a multiple of the baseline's.  None if one is missing."""
    mine = median(counted(chosen(results, scenario.name, contestant)), column.key)
    theirs = median(counted(chosen(results, scenario.name, baseline)), column.key)
    return mine / theirs if mine is not None and theirs else None


def _spread(rows: Results, column: Column) -> str:
    values = [row[column.key] for row in rows if column.key in row]
    return (
        f"{min(values):{column.format}} … {max(values):{column.format}}" if len(values) > 1 else ""
    )


def _faults(rows: Results) -> str:
    found = [
        f"{sum(row.get(fault, 0) for row in rows):.0f} {fault}"
        for fault in FAULTS
        if any(row.get(fault) for row in rows)
    ]
    failed = sum(not row["ok"] for row in rows)
    return ", ".join(found) or (f"{failed} failed" if failed else "none")


def _row(results: Results, scenario: Scenario, name: str, baseline: str) -> list[str]:
    rows = chosen(results, scenario.name, name)
    used = counted(rows)
    first = scenario.columns[0]
    cells = [name]
    for column in scenario.columns:
        value = median(used, column.key)
        cells.append("–" if value is None else f"{value:{column.format}}")
        if column.better:
            times = ratio(results, scenario, column, name, baseline)
            cells.append("" if times is None else f"{times:.2f} ×")
    calm = sum(is_calm(row) for row in rows)
    return [*cells, _spread(used, first), _faults(rows), f"{calm} of {len(rows)}"]


def _baseline(scenario: Scenario, names: Sequence[str], baseline: str) -> str:
    return baseline if baseline in names else names[0]


def table(results: Results, scenario: Scenario, baseline: str) -> str:
    """Return the table of a scenario as reStructuredText, the fastest contestant first."""
    names = list(
        dict.fromkeys(row["contestant"] for row in results if row["scenario"] == scenario.name)
    )
    against = _baseline(scenario, names, baseline)
    first = scenario.columns[0]
    head = ["" if len(names) == 1 else f"(× {against})"]
    for column in scenario.columns:
        head += [column.heading, "×"] if column.better else [column.heading]
    head += ["spread", "faults", "calm"]
    values = {
        name: median(counted(chosen(results, scenario.name, name)), first.key) for name in names
    }
    names.sort(key=lambda name: (values[name] is None, -first.better * (values[name] or 0)))
    rows = [head, *(_row(results, scenario, name, against) for name in names)]
    rows = [
        [cell or "\\" if index == 0 else cell for index, cell in enumerate(row)] for row in rows
    ]
    widths = [max(len(row[index]) for row in rows) for index in range(len(head))]
    line = "  ".join("=" * width for width in widths)
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    title = f"{scenario.title} (``{scenario.name}``)"
    return "\n".join([title, "~" * len(title), "", line, text[0], line, *text[1:], line, ""])


def circumstances(run: Figures) -> str:
    """Describe the machine and how busy it was."""
    others = sorted(row["others"] for row in run["results"])
    failed = sum(not row["ok"] for row in run["results"])
    return (
        f"{run['machine']}.  {run['started']}, rounds: {run['rounds']}, {len(others)} runs, "
        f"{failed} of them with faults.  Other processes used {others[len(others) // 2]:.2f} CPUs "
        f"in the median and {others[-1]:.2f} at most; "
        f"{sum(value >= DISTURBED for value in others)} runs were disturbed ({DISTURBED} CPUs or "
        f"more), and count only if there is no calm one."
    )


def tables(run: Figures) -> str:
    """Return all tables."""
    measured = [
        scenario
        for scenario in SCENARIOS
        if any(row["scenario"] == scenario.name for row in run["results"])
    ]
    return "\n".join(
        [
            circumstances(run),
            "",
            *(table(run["results"], scenario, run["baseline"]) for scenario in measured),
        ]
    )


def write_into(page: Path, mark: str, text: str) -> None:
    """
    Put text between the lines ``.. MARK: begin`` and ``.. MARK: end`` of a page.

    Raises:
        ValueError: the page has no such lines.
    """
    before, begin, rest = page.read_text().partition(f".. {mark}: begin")
    _, end, after = rest.partition(f".. {mark}: end")
    if not end:
        raise ValueError(f"{page} has no lines '.. {mark}: begin' and '.. {mark}: end'")
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
