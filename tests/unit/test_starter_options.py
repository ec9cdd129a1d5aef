"""`--starter`, `--starter-secret-file`, `--starter-timeout` and `--public-url`."""

from __future__ import annotations

import base64
import io
import os
from contextlib import redirect_stdout
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError

from asyncplumber.commands.check_config import Command
from asyncplumber.options import CREDENTIALS, Options
from asyncplumber.plumber import Plumber
from asyncplumber.server.service import Place, Server
from asyncplumber.starters.address import CeleryAddress, WebhookAddress
from asyncplumber.starters.webhook import WebhookStarter
from asyncplumber.tap import makeService
from tests.unit.test_authentication_options import SecretFilesCase

URL = "http://127.0.0.1:8000/work?key=sesame"
SECRET = "whsec_" + base64.b64encode(b"a secret for both of us").decode()


class StarterOptionTests(SecretFilesCase):
    def parsed(self, *words: str, **environ: str) -> Options:
        options = Options({"ASYNCPLUMBER_STORE": "memory:", **environ})
        options.parseOptions(words)
        return options

    def refused(self, *words: str, **environ: str) -> str:
        text = str(self.assertRaises(UsageError, self.parsed, *words, **environ))
        self.assertNotIn("sesame", text)
        self.assertNotIn(SECRET, text)
        return text

    def test_none(self) -> None:
        """Tasks are only reported."""
        options = self.parsed()
        self.assertIsNone(options["starter"])
        self.assertIsNone(options.starter_secrets)
        self.assertEqual((options["starter-timeout"], options["public-url"]), (10.0, ""))

    def test_a_url_and_a_task_of_celery(self) -> None:
        """On the command line and in the environment."""
        self.assertEqual(self.parsed("--starter", URL)["starter"], WebhookAddress(URL, True))
        options = self.parsed(ASYNCPLUMBER_STARTER="celery:shop.celery:app#shop.render")
        self.assertEqual(options["starter"], CeleryAddress("shop.celery:app", "shop.render"))

    def test_the_secret_comes_from_a_file(self) -> None:
        """A worker, which may have no right to read it, gets it from its parent."""
        path = self.write("secret", f"{SECRET}\n")
        options = self.parsed("--starter", URL, "--starter-secret-file", path)
        assert options.starter_secrets is not None
        self.assertEqual(options.starter_secrets.text, f"{SECRET}\n".encode())
        environ = options.environment()
        os.unlink(path)
        worker = Options(environ)
        worker.parseOptions([])
        self.assertEqual(worker.starter_secrets, options.starter_secrets)
        self.assertEqual(worker["starter"], options["starter"])

    def test_what_systemd_hands_over(self) -> None:
        """It counts where there is a URL, and disturbs nobody else."""
        self.write(CREDENTIALS["starter-secret-file"], SECRET)
        environ = {"CREDENTIALS_DIRECTORY": str(self.folder)}
        self.assertIsNotNone(self.parsed("--starter", URL, **environ).starter_secrets)
        self.assertIsNone(self.parsed(**environ).starter_secrets)
        self.assertIsNone(self.parsed("--starter", "celery:a#b", **environ).starter_secrets)

    def test_what_is_wrong_is_named(self) -> None:
        """And no secret."""
        good = self.write("good", SECRET)
        for words, part in (
            (("--starter", "ftp://u:sesame@a/"), "--starter"),
            (("--starter", "celery:sesame"), "--starter"),
            (("--starter-timeout", "0"), "--starter-timeout"),
            (("--starter-timeout", "11min"), "--starter-timeout"),
            (("--public-url", "push.example.com"), "--public-url"),
            (("--public-url", "https://push.example.com/?a=b"), "--public-url"),
            (("--starter-secret-file", good), "--starter URL"),
            (("--starter", "celery:a#b", "--starter-secret-file", good), "--starter URL"),
        ):
            self.assertIn(part, self.refused(*words), words)
        for name, text, mode in (
            ("open", SECRET, 0o644),
            ("plain", "sesame, a secret of no such form", 0o600),
            ("empty", "# nothing", 0o600),
        ):
            path = self.write(name, text, mode)
            message = self.refused("--starter", URL, "--starter-secret-file", path)
            self.assertIn("--starter-secret-file", message)
            self.assertIn(path, message)

    def service(self, *words: str) -> Any:
        options = self.parsed("--port", "0", *words)
        return makeService(options, MemoryReactorClock())

    def test_the_server_has_the_starter(self) -> None:
        """With what the options say."""
        path = self.write("secret", f"{SECRET}\n{SECRET}\n")
        service = self.service(
            *("--starter", URL, "--starter-secret-file", path, "--starter-timeout", "3s"),
            *("--max-body", "2kB", "--public-url", "https://push.example.com/plumber/"),
        )
        plumber = _plumber_of(service)
        self.assertTrue(plumber.tasks.can_start)
        self.assertEqual(plumber.public_url, "https://push.example.com/plumber/")
        starter = plumber.tasks._starter
        assert isinstance(starter, WebhookStarter)
        self.assertEqual((starter._timeout, starter._limit, len(starter._secrets)), (3, 2000, 2))
        self.assertFalse(_plumber_of(self.service()).tasks.can_start)

    def test_a_celery_app_that_cannot_be_imported(self) -> None:
        """The server does not start."""
        error = self.assertRaises(
            SystemExit, self.service, "--starter", "celery:no_such_module#task"
        )
        self.assertIn("--starter: the Celery app 'no_such_module'", str(error))

    def test_the_default_of_the_public_url(self) -> None:
        """That of the port that clients use, or the advertised URL if it is about that port."""
        clock = MemoryReactorClock()
        first, second = serverFromString(clock, "tcp:8080"), serverFromString(clock, "tcp:9090")
        one, two = [Place(first, "public")], [Place(first, "public"), Place(second, "private")]
        for advertised, places, expected in (
            ("http://10.0.0.7:8080", one, ""),
            ("", one, "http://127.0.0.1:8080"),
            ("http://10.0.0.7:9090", two, "http://127.0.0.1:8080"),
            ("", two, "http://127.0.0.1:8080"),
        ):
            plumber = Plumber("memory:", advertised, reactor=clock)
            server = Server(plumber, places, clock)
            server.startService()
            self.addCleanup(server.stopService)
            self.assertEqual(plumber.public_url, expected, advertised)

    def test_check_config_says_it(self) -> None:
        """In plain words, and without the query of the URL."""
        path = self.write("secret", SECRET)
        for words, expected in (
            ((), "Tasks are only reported"),
            (("--starter", URL), "by POSTs to http://127.0.0.1:8000/work, which are not signed."),
            (("--starter", URL, "--starter-secret-file", path), "which are signed."),
            (("--starter", "http://app:8000/"), "WARNING: http:// over a network"),
            (("--starter", "celery:shop#a.b"), "the Celery task 'a.b' of the app 'shop'"),
        ):
            command = Command({"ASYNCPLUMBER_STORE": "memory:"})
            command.parseOptions(words)
            out = io.StringIO()
            with redirect_stdout(out):
                self.assertEqual(command.run(), 0)
            self.assertIn(expected, out.getvalue())
            self.assertNotIn("sesame", out.getvalue())


def _plumber_of(service: Any) -> Plumber:
    """Return the plumber somewhere in a service."""
    found = [service]
    while found:
        each = found.pop()
        if isinstance(each, Plumber):
            return each
        found += [*getattr(each, "services", ()), *filter(None, [getattr(each, "_service", None)])]
    raise AssertionError("there is no plumber in it")
