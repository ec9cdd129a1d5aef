"""What is installed: the plugin is found, and nothing of Twisted's own is touched."""

import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import TestCase

import asyncplumber

ROOT = Path(__file__).resolve().parent.parent.parent


class PluginTests(TestCase):
    def test_twistd_finds_the_plugin(self) -> None:
        """Our ServiceMaker is among Twisted's plugins, under the name that the README uses."""
        makers = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "asyncplumber"]
        self.assertEqual([maker.module for maker in makers], ["asyncplumber.tap"])  # type: ignore[attr-defined]

    def test_twisted_stays_a_namespace(self) -> None:
        """An __init__.py in twisted/ or twisted/plugins/ would be installed over Twisted's own."""
        found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "twisted").rglob("*.py"))
        self.assertEqual(found, ["twisted/plugins/asyncplumber_plugin.py"])

    def test_version_says_what_is_installed(self) -> None:
        """``twistd asyncplumber --version`` prints only the version of the distribution."""
        command = [
            sys.executable,
            "-c",
            "from twisted.scripts.twistd import run; run()",
            "asyncplumber",
            "--version",
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        self.assertEqual(said.stdout, f"asyncplumber {version('asyncplumber')}\n")


class ProjectTests(TestCase):
    def test_importing_it_loads_neither_twisted_nor_a_reactor(self) -> None:
        """A program that only sends does not pay for the server."""
        code = "import asyncplumber, sys; print({'twisted', 'treq', 'klein'} & set(sys.modules))"
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        self.assertEqual(said.stdout.strip(), "set()", said.stderr)

    def test_every_public_name_exists(self) -> None:
        """All names of ``__all__``."""
        for name in asyncplumber.__all__:
            self.assertTrue(hasattr(asyncplumber, name), name)

    def test_packages_are_found_by_their_namespace(self) -> None:
        """``find:`` would leave the plugin out without an error.

        Without ``package_dir``, an editable install hides it.
        """
        config = ConfigParser()
        config.read(ROOT / "setup.cfg")
        self.assertEqual(config["options"]["packages"], "find_namespace:")
        self.assertEqual(config["options"]["package_dir"].split(), ["=", "."])

    def test_the_static_files_are_package_data(self) -> None:
        """The page is served from the installed package."""
        names = {
            path.name for path in (Path(asyncplumber.__file__).parent / "http/static").iterdir()
        }
        self.assertLessEqual({"index.html", "asyncplumber.js", "page.js", "page.css"}, names)
