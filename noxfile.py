"""
Everything that must hold, as sessions of nox.  ``nox -l`` lists them; ``nox -s fast`` runs one.

Sessions that run tests exist once for each Python that is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
FAST_SECONDS = 40  # the promise of CONTRIBUTING.rst for the fast tier

# Some tests with real servers: each dependency is used by one of them.
SAMPLE = (
    "tests.system.test_tap",
    "tests.system.test_mongo",
    "tests.system.test_stores",
    "tests.system.test_celery",
    "tests.system.test_rq",
    "tests.system.test_integrations",
    "tests.system.test_integration_hooks",
)

nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "docs", "fast", "lowest", "packaging"]

if shutil.which("pyenv"):
    # The commands of pyenv exist for every Python, but run only for those that are switched on.
    found = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True)
    ours = ".".join(map(str, sys.version_info[:3]))
    names = [name for name in found.stdout.split() if name.startswith(SUPPORTED) and name != ours]
    os.environ["PYENV_VERSION"] = ":".join([ours, *reversed(names)])


def trial(session: nox.Session, *arguments: str, warnings: bool = False) -> None:
    """Run trial in the temporary folder of the session, so that runs do not disturb each other."""
    folder = Path(session.create_tmp()).resolve() / "trial"
    strict = ["-W", "error"] if warnings else []
    command = ["python", *strict, "-m", "twisted.trial", f"--temp-directory={folder}"]
    session.run(*command, *arguments)


@nox.session(python=SUPPORTED)
def fast(session: nox.Session) -> None:
    """The tests in memory: no network, no process, every warning an error."""
    session.install("-e", ".[test-fast]")
    session.env["ASYNCPLUMBER_TESTS_IN_MEMORY"] = "1"
    trial(session, *(session.posargs or ["tests.unit"]), warnings=True)


@nox.session(python=SUPPORTED)
def tests(session: nox.Session) -> None:
    """All tests, with the latest versions of all dependencies.  Eight minutes on two cores."""
    session.install("-U", "-e", ".[test]")
    trial(session, *(session.posargs or ["tests", "benchmarks"]))


@nox.session(python=SUPPORTED)
def sample(session: nox.Session) -> None:
    """The tests in memory and some with real servers, with the latest dependencies."""
    session.install("-U", "-e", ".[test]")
    trial(session, *(session.posargs or ["tests.unit", *SAMPLE]))


@nox.session(python=SUPPORTED[0])
def lowest(session: nox.Session) -> None:
    """The same with the lowest versions that setup.cfg allows."""
    constraints = Path(session.create_tmp()).resolve() / "lowest.txt"
    lines = session.run("python", "harness/lowest.py", silent=True)
    constraints.write_text(str(lines), encoding="utf-8")
    session.install("-c", str(constraints), "-e", ".[test]")
    trial(session, *(session.posargs or ["tests.unit", *SAMPLE]))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and the news fragments."""
    session.install("ruff", "towncrier")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("towncrier", "build", "--draft", "--version", "next", silent=True)


@nox.session
def types(session: nox.Session) -> None:
    """Types of the package, the tests, the harness, the benchmarks and the examples."""
    session.install("-e", ".[test,types]")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation.  Every warning is an error."""
    session.install("-e", ".[docs]")
    folder = session.posargs[0] if session.posargs else str(ROOT / "docs/_build/html")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-E", "-b", "html", "docs", folder)


@nox.session
def packaging(session: nox.Session) -> None:
    """The wheel, in an environment of its own: the plugin is in it, and can be taken out again."""
    session.install("build", "twine", "virtualenv")
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(folder / "dist"), ".", silent=True)
    built = [str(path) for path in (folder / "dist").iterdir()]
    session.run("twine", "check", "--strict", *built)
    clean = folder / "clean"
    session.run("virtualenv", "--clear", "-q", str(clean))
    wheel = next(path for path in built if path.endswith(".whl"))
    python, twistd = str(clean / "bin/python"), str(clean / "bin/twistd")
    session.run(python, "-m", "pip", "install", "-q", wheel, external=True)
    session.chdir(folder)
    listed = session.run(twistd, "--help", silent=True, external=True)
    if "asyncplumber" not in str(listed):
        session.error("twistd does not list asyncplumber: the plugin is not in the wheel")
    session.run(twistd, "asyncplumber", "--version", external=True)
    session.run(python, "-m", "pip", "check", external=True)
    session.run(python, "-m", "pip", "uninstall", "-q", "-y", "asyncplumber", external=True)
    session.run(twistd, "--help", silent=True, external=True)
