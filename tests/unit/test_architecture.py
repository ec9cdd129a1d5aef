"""
The layers hold: imports only go down, nothing goes round, each library has one place.

The rules are functions over a folder of modules, which are read with `ast` and not imported.  So
each rule is also tried on a small tree with a planted violation, which it must find.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "asyncplumber"

# From the bottom up.  A module or package imports only from lines above its own.
LAYERS = (
    ("errors", "sending", "_twisted_compat", "clocks", "rate_limited_log", "log_text", "figures"),
    ("event", "concurrency", "http_bodies"),
    ("grant", "task"),
    ("wire",),
    ("interfaces",),
    ("auth",),
    ("core",),
    ("stores", "relays", "transports", "starters"),
    ("http",),
    ("plumber", "own_authority"),
    ("server",),
    ("option_list",),
    ("option_help",),
    ("options",),
    ("tap", "testing", "new_epoch"),
    ("commands",),
    ("command",),
    ("__main__",),
)
# Although the core is below them, these know only values, interfaces and bytes.
APART = {"stores": ("auth", "core"), "relays": ("core",)}
# What runs on the sender's side.  With the server it shares only `sending`: what a program says
# about an event.
CLIENT_LAYERS = (("sending",), ("client",), ("integrations",))
BOTH = ("testing", "commands.run")  # stand for both programs, and know both

# Each library is imported by one module, or by the modules of one package; a tuple has a few.
LIBRARIES: dict[str, str | tuple[str, ...]] = {
    "autobahn": "transports.frame_parser",
    "celery": "starters.celery",
    "bson": "stores.mongo",
    "cryptography": "auth.senders.ed25519",
    "httptools": "http.reader",
    "joserfc": "auth.tokens.jose",
    "klein": "http.routes",
    "msgspec": "wire.json_text",
    "prometheus_client": "http.metrics",
    "pymongo": "stores.mongo",
    "sqlite3": "stores.sqlite",
    "treq": ("relays", "auth.fetch"),
    "txmongo": "stores.mongo",
    "werkzeug": "http.routes",
}
# The sender's side is a program of its own, with its own use of a library.
CLIENT_LIBRARIES: dict[str, str | tuple[str, ...]] = {
    "apscheduler": "integrations.apscheduler",
    "celery": "integrations.celery",
    "django": "integrations.django",
    "dramatiq": "integrations.dramatiq",
    "huey": "integrations.huey",
    "kombu": "integrations.celery",
    "rq": "integrations.rq",
    "taskiq": "integrations.taskiq",
    "treq": "client.twisted",
}
EVERYWHERE = ("twisted", "zope", PACKAGE)
# Who may name the global reactor, and only inside a function.
REACTOR = ("options", "tap", "_twisted_compat", "client.twisted", "client.reactor_beats")

LONGEST_MODULE = 400  # lines: beyond that a module is probably two
LONGEST_FUNCTION = 50  # lines without its docstring


@cache  # the rules look at the same trees, and change nothing in them
def modules(root: Path, package: str = PACKAGE) -> dict[str, ast.Module]:
    """Return each module of a package by its dotted name in it; the package itself is ``""``."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root / package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


@cache
def imports(tree: ast.AST) -> tuple[str, ...]:
    """Return all that is imported anywhere in it, also under ``if TYPE_CHECKING``."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # A relative import has no name that these rules could judge.
            found += [f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names]
    return tuple(found)


def targets(name: str, known: dict[str, ast.Module]) -> str | None:
    """Return the module of ours that this imported name is, or is in; None if it is not ours."""
    if not name.startswith(f"{PACKAGE}."):
        return None
    name = name.removeprefix(f"{PACKAGE}.")
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def graph(known: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Return which modules of ours each module imports."""
    return {
        module: {
            target
            for name in imports(tree)
            if (target := targets(name, known)) is not None and target != module
        }
        for module, tree in known.items()
    }


def level(module: str, layers: tuple[tuple[str, ...], ...]) -> int | None:
    """Return the number of the layer that a module is in, None if it is in none."""
    top = module.partition(".")[0]
    return next((number for number, names in enumerate(layers) if top in names), None)


def upward(known: dict[str, ast.Module]) -> list[str]:
    """Return the imports that do not go down."""
    wrong = []
    for module, imported in graph(known).items():
        if not module:
            continue  # the package itself imports on demand
        layers = CLIENT_LAYERS if level(module, CLIENT_LAYERS) is not None else LAYERS
        own, top = level(module, layers), module.partition(".")[0]
        if own is None:
            wrong.append(f"{module} is in no layer")
            continue
        for other in imported:
            other_top = other.partition(".")[0]
            target = level(other, layers)
            if (top in BOTH or module in BOTH) and level(other, CLIENT_LAYERS) is not None:
                continue
            is_below = target is not None and (target < own or other_top == top)
            if not is_below or other_top in APART.get(top, ()):
                wrong.append(f"{module} imports {other or PACKAGE}")
    return sorted(wrong)


def cycles(known: dict[str, ast.Module]) -> list[str]:
    """Return the groups of modules that import each other in a circle (Tarjan's algorithm)."""
    edges = graph(known)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[str] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in edges[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(" <-> ".join(sorted(group)))

    for module in edges:
        if module and module not in index:
            visit(module)
    return sorted(found)


def misplaced(known: dict[str, ast.Module]) -> list[str]:
    """Return the imports of third-party libraries outside the place that a library has."""
    wrong = []
    for module, tree in known.items():
        is_client = level(module, CLIENT_LAYERS) is not None
        places = CLIENT_LIBRARIES if is_client else LIBRARIES
        for name in set(imports(tree)):
            library = name.partition(".")[0]
            if library in EVERYWHERE or library in sys.stdlib_module_names - set(places):
                continue
            place = places.get(library, ())
            allowed = (place,) if isinstance(place, str) else place
            if not any(f"{module}.".startswith(f"{name}.") for name in allowed):
                wrong.append(f"{module} imports {name}")
    return sorted(wrong)


def crossing(root: Path) -> list[str]:
    """Return the imports between tests and benchmarks."""
    found = []
    for here, there in (("tests", "benchmarks"), ("benchmarks", "tests")):
        for path in (root / here).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if there in text:  # parsing all of them would take a second
                names = [name for name in imports(ast.parse(text)) if name.split(".")[0] == there]
                module = ".".join(path.relative_to(root).with_suffix("").parts)
                found += [f"{module} imports {name}" for name in names]
    return sorted(found)


class LayerTests(SynchronousTestCase):
    """The rules, on the project as it is."""

    def setUp(self) -> None:
        self.known = modules(ROOT)

    def test_imports_only_go_down(self) -> None:
        """From each layer to those below it, and inside a package."""
        self.assertEqual(upward(self.known), [])

    def test_no_two_modules_import_each_other(self) -> None:
        """Neither directly nor by way of others, and not for type annotations either."""
        self.assertEqual(cycles(self.known), [])

    def test_each_library_has_one_place(self) -> None:
        """So that it can be changed there, and is loaded only where it is needed."""
        self.assertEqual(misplaced(self.known), [])

    def test_each_library_is_used(self) -> None:
        """A place for a library that nobody imports is out of date."""
        used = {name.partition(".")[0] for tree in self.known.values() for name in imports(tree)}
        self.assertEqual({*LIBRARIES, *CLIENT_LIBRARIES} - used, set())

    def test_tests_and_benchmarks_do_not_import_each_other(self) -> None:
        """What both need is in the harness."""
        self.assertEqual(crossing(ROOT), [])

    def test_the_global_reactor_is_named_in_few_places(self) -> None:
        """All others are handed a clock; and nobody names it while being imported."""
        for module, tree in self.known.items():
            if "twisted.internet.reactor" in imports(tree):
                self.assertIn(module, REACTOR)
            at_import = [
                name
                for statement in tree.body
                if isinstance(statement, ast.Import | ast.ImportFrom)
                for name in imports(statement)
            ]
            self.assertNotIn("twisted.internet.reactor", at_import, module)

    def test_the_plugin_imports_nothing_of_ours(self) -> None:
        """An error in it would show on every call of twistd."""
        path = ROOT / "twisted/plugins/asyncplumber_plugin.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.assertEqual(list(imports(tree)), ["twisted.application.service.ServiceMaker"])

    def test_modules_and_functions_are_short(self) -> None:
        """What grows beyond the bound has two ideas in it: split it by idea, not by length."""
        large = []
        for path in sorted((ROOT / PACKAGE).rglob("*.py")):
            if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_MODULE:
                large.append(str(path.relative_to(ROOT)))
        for module, tree in self.known.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    docstring = node.body[0] if ast.get_docstring(node) else None
                    lines = (node.end_lineno or 0) - node.lineno + 1
                    if docstring is not None:
                        lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
                    if lines > LONGEST_FUNCTION:
                        large.append(f"{module}: {node.name}")
        self.assertEqual(large, [])

    def test_each_module_says_what_it_is(self) -> None:
        """In its first lines."""
        without = [module for module, tree in self.known.items() if not ast.get_docstring(tree)]
        self.assertEqual(without, [])


class PlantedViolationTests(SynchronousTestCase):
    """Each rule finds a violation in a tree that has one."""

    def plant(self, **sources: str) -> Path:
        """Make a tree of modules; ``core__hub`` is the path ``asyncplumber/core/hub.py``."""
        root = Path(self.mktemp())
        for name, source in sources.items():
            folder = PACKAGE if not name.startswith(("tests__", "benchmarks__")) else "."
            path = root / folder / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        return root

    def test_a_layer_that_imports_a_higher_one(self) -> None:
        """The core may not know a transport."""
        root = self.plant(
            core__hub="from asyncplumber.transports.sse import EventStream",
            transports__sse="from asyncplumber.errors import PlumberError",
            errors="",
        )
        self.assertEqual(upward(modules(root)), ["core.hub imports transports.sse"])

    def test_an_import_for_type_annotations_only(self) -> None:
        """It counts: the reader has to know the other module all the same."""
        root = self.plant(
            errors="from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from asyncplumber.event import Position",
            event="",
        )
        self.assertEqual(upward(modules(root)), ["errors imports event"])

    def test_an_import_inside_a_function(self) -> None:
        """It counts as well."""
        root = self.plant(wire__sse="def f():\n    import asyncplumber.core.hub", core__hub="")
        self.assertEqual(upward(modules(root)), ["wire.sse imports core.hub"])

    def test_neighbours_that_import_each_other(self) -> None:
        """Stores, relays and transports do not know each other."""
        root = self.plant(stores__memory="from asyncplumber.relays import http", relays__http="")
        self.assertEqual(upward(modules(root)), ["stores.memory imports relays.http"])

    def test_a_store_that_imports_the_core(self) -> None:
        """Although the core is below it."""
        root = self.plant(stores__memory="from asyncplumber.core import hub", core__hub="")
        self.assertEqual(upward(modules(root)), ["stores.memory imports core.hub"])

    def test_a_client_that_imports_the_server(self) -> None:
        """A worker that only sends loads none of it."""
        root = self.plant(client__send="from asyncplumber.event import Cursor", event="")
        self.assertEqual(upward(modules(root)), ["client.send imports event"])

    def test_a_module_in_no_layer(self) -> None:
        """A new module has to be given a layer."""
        root = self.plant(misc="")
        self.assertEqual(upward(modules(root)), ["misc is in no layer"])

    def test_a_cycle_of_three(self) -> None:
        """In one package, where the layers do not see it."""
        root = self.plant(
            core__hub="import asyncplumber.core.channel",
            core__channel="from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from asyncplumber.core.replay import Replay",
            core__replay="from asyncplumber.core.hub import Hub",
            core__leases="from asyncplumber.core.hub import Hub",
        )
        self.assertEqual(upward(modules(root)), [])
        self.assertEqual(cycles(modules(root)), ["core.channel <-> core.hub <-> core.replay"])

    def test_a_library_in_a_second_place(self) -> None:
        """Klein outside the routes, and one that has no place at all."""
        root = self.plant(
            http__routes="import klein", http__status="import klein, requests\nimport json"
        )
        self.assertEqual(
            misplaced(modules(root)),
            ["http.status imports klein", "http.status imports requests"],
        )

    def test_a_library_with_two_places(self) -> None:
        """In both it may be imported, and beside them not."""
        root = self.plant(
            auth__fetch="import treq", auth__jwks="import treq", relays__http="import treq"
        )
        self.assertEqual(misplaced(modules(root)), ["auth.jwks imports treq"])

    def test_a_library_of_the_other_program(self) -> None:
        """Celery belongs to the integrations and never to the server."""
        root = self.plant(core__hub="import celery", integrations__celery="import celery")
        self.assertEqual(misplaced(modules(root)), ["core.hub imports celery"])

    def test_a_benchmark_that_imports_a_test(self) -> None:
        """And a test that imports a benchmark."""
        root = self.plant(
            tests__test_hub="from benchmarks import run", benchmarks__run="import tests.mongod"
        )
        self.assertEqual(
            crossing(root),
            ["benchmarks.run imports tests.mongod", "tests.test_hub imports benchmarks.run"],
        )
