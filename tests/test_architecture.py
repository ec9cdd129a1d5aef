"""The house stands: a room imports only from floors below its own, and what is from outside comes in by one door."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "asyncplumber"

# From the ground up.  A name that ends in a dot is a whole storey of rooms that may visit each other.
FLOORS = (
    ("clocks", "errors", "event", "rate_limited_log"),
    ("interfaces", "wire", "order", "given", "payload", "posted", "semaphore", "signing", "waiting_posts"),
    ("awaitables", "channel", "replay", "hub", "forwarding", "intake", "leases", "callbacks", "rounds"),
    ("stores.", "relays."),
    ("web.",),
    ("plumber", "new_epoch"),
    ("loopback", "service", "signals", "workers", "testing"),
    ("tap",),
)
DOORS = {
    "klein": ("web/site.py",),
    "werkzeug": ("web/site.py",),
    "autobahn": ("web/frame_parser.py",),
    "httptools": ("web/reading.py",),
    "msgspec": ("payload.py",),
    "txmongo": ("stores/mongo*.py",),
    "pymongo": ("stores/mongo*.py",),
    "bson": ("stores/mongo*.py",),
    "sqlite3": ("stores/sqlite*.py",),
    "treq": ("relays/*.py", "tasks/*.py"),
    "celery": ("tasks/celery.py",),
    "kombu": ("tasks/celery.py",),  # it comes with Celery
}
EVERYWHERE = ("twisted", "zope")
REACTOR = ("tap.py", "plumber.py", "tasks/twisted.py")  # those who may name the global one, plumber only as a lazy default


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Each module of the package, by its path in it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """All that is imported anywhere in it, each as one dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def for_typing_only(tree: ast.AST) -> set[str]:
    """What is imported under ``if TYPE_CHECKING``: words, and not stairs."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            found.update(imports(node))
    return found


def floor(room: str) -> int | None:
    """The floor of a room, by its dotted name in the package; None if it is on none."""
    for number, rooms in enumerate(FLOORS):
        if any(f"{room}.".startswith(name) if name.endswith(".") else room == name for name in rooms):
            return number
    return None


def room_of(path: str) -> str:
    """The dotted name of a module in the package."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class HouseTests(SynchronousTestCase):
    """Each module, read with `ast`: nothing is imported for this."""

    def test_nobody_climbs_the_stairs_the_wrong_way(self) -> None:
        """A room may use those of its own floor and of the floors below."""
        wrong = []
        for path, tree in modules():
            room = room_of(path)
            if room == "__init__" or room.split(".")[0] == "tasks":
                continue
            own = floor(room)
            self.assertIsNotNone(own, f"{path} is on no floor; say in FLOORS where it belongs")
            for name in set(imports(tree)) - for_typing_only(tree):
                if not name.startswith("asyncplumber."):
                    continue
                other = name.removeprefix("asyncplumber.")
                target = floor(other) if floor(other) is not None else floor(other.rpartition(".")[0])
                if target is None or own is None or target > own:
                    wrong.append(f"{path} imports {name}")
        self.assertEqual(wrong, [])

    def test_each_library_from_outside_has_its_door(self) -> None:
        """So that it can be changed there, and what is not needed is not loaded."""
        wrong = []
        for path, tree in modules():
            for name in imports(tree):
                library = name.partition(".")[0]
                if library in DOORS:
                    if not any(fnmatch(path, door) for door in DOORS[library]):
                        wrong.append(f"{path} imports {name}")
                elif library not in (*EVERYWHERE, "asyncplumber") and library not in sys.stdlib_module_names:
                    wrong.append(f"{path} imports {name}, which has no door")
        self.assertEqual(wrong, [])

    def test_the_tasks_stand_alone(self) -> None:
        """A worker that only sends loads none of the server."""
        allowed = ("asyncplumber.tasks.", "celery", "kombu", "treq", "twisted", "zope")
        for path, tree in modules():
            if path.startswith("tasks/"):
                for name in imports(tree):
                    known = name.startswith(allowed) or name.partition(".")[0] in sys.stdlib_module_names
                    self.assertTrue(known, f"{path} imports {name}")

    def test_only_the_front_door_names_the_global_reactor(self) -> None:
        """Everyone else is handed a clock; and nobody names it while being imported."""
        for path, tree in modules():
            if "twisted.internet.reactor" in imports(tree):
                self.assertIn(path, REACTOR)
            for statement in tree.body:
                if isinstance(statement, ast.Import | ast.ImportFrom):
                    self.assertNotIn("twisted.internet.reactor", list(imports(statement)), path)

    def test_the_signpost_imports_nothing_of_ours(self) -> None:
        """An error in it would show on every call of twistd."""
        tree = ast.parse((ROOT / "twisted/plugins/asyncplumber_plugin.py").read_text(encoding="utf-8"))
        self.assertEqual(list(imports(tree)), ["twisted.application.service.ServiceMaker"])

    def test_rooms_and_functions_stay_small(self) -> None:
        """A module beyond 300 lines is two rooms, a function beyond 40 is two functions."""
        large = []
        for path, tree in modules():
            lines = len((PACKAGE / path).read_text(encoding="utf-8").splitlines())
            if lines > 300:
                large.append(f"{path}: {lines} lines")
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 40:
                    large.append(f"{path}: {node.name}")
        self.assertEqual(large, [])

    def test_every_room_says_what_it_is(self) -> None:
        """In its first lines."""
        self.assertEqual([path for path, tree in modules() if not ast.get_docstring(tree)], [])
