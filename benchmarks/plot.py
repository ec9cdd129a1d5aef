"""A picture with a bar for each contestant in each scenario, relative to the baseline."""

from __future__ import annotations

from html import escape
from math import log2

from benchmarks.generator import Figures
from benchmarks.report import ratio
from benchmarks.scenarios import SCENARIOS

_WIDTH, _LEFT, _BAR, _GAP, _TOP = 860, 330, 13, 16, 64
_RANGE = 4.5  # powers of two on either side of the baseline
_COLOURS = ("#2b6cb0", "#dd6b20", "#38a169", "#805ad5", "#d53f8c", "#718096")


def _x(times: float) -> float:
    half = (_WIDTH - _LEFT - 70) / 2
    return _LEFT + half + half * max(-_RANGE, min(_RANGE, log2(times))) / _RANGE


def _text(x: float, y: float, text: str, *, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'


def _bars(run: Figures, names: list[str]) -> tuple[list[str], float]:
    shapes: list[str] = []
    y: float = _TOP
    for scenario in SCENARIOS:
        column = scenario.columns[0]
        found = [
            (name, ratio(run["results"], scenario, column, name, run["baseline"])) for name in names
        ]
        bars = [(name, times if column.better > 0 else 1 / times) for name, times in found if times]
        if not bars or not column.better:
            continue
        label = f"{scenario.name}: {column.heading}" + (
            " (less is better)" if column.better < 0 else ""
        )
        shapes.append(_text(_LEFT - 12, y + _BAR * len(bars) / 2 + 4, label, anchor="end"))
        for name, times in bars:
            here, one = _x(times), _x(1)
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            size = f'width="{abs(here - one):.1f}" height="{_BAR - 2}"'
            shapes.append(f'<rect x="{min(here, one):.1f}" y="{y}" {size} fill="{colour}"/>')
            shapes.append(
                _text(max(here, one) + 5, y + _BAR - 3, f"{times:.2f} ×", extra='font-size="10"')
            )
            y += _BAR
        y += _GAP
    return shapes, y


def svg(run: Figures) -> str:
    """Return the picture as SVG."""
    names = [
        name
        for name in dict.fromkeys(row["contestant"] for row in run["results"])
        if name != run["baseline"]
    ]
    names = [
        name
        for name in names
        if any(ratio(run["results"], s, s.columns[0], name, run["baseline"]) for s in SCENARIOS)
    ]
    shapes, bottom = _bars(run, names)
    lines = []
    for power in range(-4, 5):
        x = _x(2.0**power)
        style = 'stroke="#444"' if power == 0 else 'stroke="#ddd"'
        lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{bottom:.0f}" {style}/>')
        label = f"{2**power} ×" if power >= 0 else f"1/{2**-power} ×"
        lines.append(_text(x, _TOP - 14, label, anchor="middle", extra='fill="#666"'))
    legend = []
    for index, name in enumerate(names):
        x = 12 + index * 150
        colour = _COLOURS[index % len(_COLOURS)]
        legend.append(f'<rect x="{x}" y="14" width="11" height="11" fill="{colour}"/>')
        legend.append(_text(x + 16, 24, name))
    title = (
        f"times {run['baseline']}, to the right is better"
        if names
        else f"nobody to compare with {run['baseline']}"
    )
    body = "\n".join(
        [
            *lines,
            *shapes,
            *legend,
            _text(_WIDTH - 12, 24, title, anchor="end", extra='font-weight="bold"'),
        ]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{bottom:.0f}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
