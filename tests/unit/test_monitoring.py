"""The dashboard and the alert rules name figures that exist, and so does the guide."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.figures import FigureSet
from asyncplumber.http.request_log import REASONS
from asyncplumber.stores.outage import Outage
from asyncplumber.testing import MemoryServer
from asyncplumber.transports.closes import CODES

try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
_NAME = re.compile(r"\basyncplumber_[a-z_]+")


def exported() -> set[str]:
    """Return the name of each sample of ``/metrics``."""
    figures = dict(MemoryServer().plumber.figures.collect())
    figures.update(FigureSet(*Outage("x").figures).collect())
    names = set()
    for name, figure in figures.items():
        suffixes = ("", "_bucket", "_count", "_sum") if figure.kind == "histogram" else ("",)
        names |= {f"asyncplumber_{name}{suffix}" for suffix in suffixes}
    return names


class DashboardTests(SynchronousTestCase):
    """``grafana-dashboard.json``."""

    def setUp(self) -> None:
        text = (DOCS / "examples/grafana-dashboard.json").read_text(encoding="utf-8")
        self.dashboard: dict[str, Any] = json.loads(text)
        self.panels: list[dict[str, Any]] = self.dashboard["panels"]

    def test_each_name_exists(self) -> None:
        """In the questions of the panels and of the variables."""
        text = json.dumps([self.panels, self.dashboard["templating"]])
        self.assertEqual(set(_NAME.findall(text)) - exported(), set())

    def test_each_panel_can_be_read(self) -> None:
        """It has a title, a sentence, a unit and a question, and nothing lies above it."""
        self.assertEqual(
            len({panel["id"] for panel in self.panels}), len(self.panels), "ids are unique"
        )
        taken: set[tuple[int, int]] = set()
        for panel in self.panels:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            self.assertEqual(cells & taken, set(), panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells
            if panel["type"] != "row":
                self.assertTrue(panel["description"].endswith("."), panel["title"])
                self.assertTrue(panel["fieldConfig"]["defaults"]["unit"])
                for target in panel["targets"]:
                    self.assertIn('job=~"$job"', target["expr"])
                    self.assertEqual(target["expr"].count("("), target["expr"].count(")"))


class AlertTests(SynchronousTestCase):
    """``prometheus-alerts.yaml``."""

    skip = None if yaml else "PyYAML is not installed (it is one of the test extra)"

    def setUp(self) -> None:
        text = (DOCS / "examples/prometheus-alerts.yaml").read_text(encoding="utf-8")
        self.rules: list[dict[str, Any]] = [
            rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]
        ]

    def test_each_name_exists(self) -> None:
        """And each value of a label that a rule looks for."""
        for rule in self.rules:
            expression = rule["expr"]
            self.assertEqual(set(_NAME.findall(expression)) - exported(), set(), rule["alert"])
            for label, values in re.findall(r'(reason|code)=~?"([^"]*)"', expression):
                known = REASONS if label == "reason" else [str(code) for code in CODES]
                self.assertEqual(set(values.split("|")) - set(known), set(), rule["alert"])

    def test_each_rule_tells_somebody_something(self) -> None:
        """It has a name of its own, a severity and a summary."""
        names = [rule["alert"] for rule in self.rules]
        self.assertEqual(len(set(names)), len(names))
        for rule in self.rules:
            self.assertIn(rule["labels"]["severity"], ("critical", "warning", "info"))
            self.assertTrue(rule["annotations"]["summary"])
            self.assertEqual(rule["expr"].count("("), rule["expr"].count(")"))


class GuideTests(SynchronousTestCase):
    """``howto/monitor.rst``."""

    def test_each_name_exists(self) -> None:
        """A reader copies them."""
        text = (DOCS / "howto/monitor.rst").read_text(encoding="utf-8")
        self.assertEqual(set(_NAME.findall(text)) - exported(), set())
