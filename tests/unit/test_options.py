"""The options: what they take, and that whatever is wrong is refused by name."""

from __future__ import annotations

import io
import resource
import sys
from pathlib import Path

from twisted.application.app import ServerOptions
from twisted.python.usage import UsageError
from twisted.trial.unittest import TestCase

from asyncplumber.core.tasks.settings import DEFAULT_SETTINGS
from asyncplumber.option_list import GROUPS, OPTIONS
from asyncplumber.options import CREDENTIALS, Options


def parsed(*words: str, **environ: str) -> Options:
    options = Options({f"ASYNCPLUMBER_{name}": value for name, value in environ.items()})
    options.parseOptions(words)
    return options


class OptionsTests(TestCase):
    def refused(self, *words: str, **environ: str) -> str:
        return str(self.assertRaises(UsageError, parsed, *words, **environ))

    def test_the_default_is_safe_and_needs_nothing(self) -> None:
        """Loopback, and a file in the current folder."""
        options = parsed()
        self.assertEqual(options["listen"], "tcp:8080:interface=127.0.0.1:backlog=4096")
        self.assertEqual(options["store"], "sqlite:asyncplumber.sqlite")
        self.assertEqual((options["history-length"], options["history-age"]), (1000, 86400.0))
        self.assertEqual(options["history-bytes"], 16 * 1024 * 1024)

    def test_the_environment_gives_defaults(self) -> None:
        """A container sets variables; the command line wins over them."""
        self.assertEqual(parsed(PORT="9000")["port"], 9000)
        self.assertEqual(parsed("--port", "9001", PORT="9000")["port"], 9001)
        self.assertEqual(parsed(HISTORY_LENGTH="7")["history-length"], 7)
        self.assertEqual(parsed(INSECURE="1")["insecure"], 1)

    def test_wrong_numbers_are_named(self) -> None:
        """The message has the option and what it takes."""
        for name, value in (
            ("port", "65536"),
            ("port", "http"),
            ("history-length", "0"),
            ("history-bytes", "0"),
            ("history-age", "-1"),
            ("workers", "0"),
        ):
            self.assertIn(f"--{name}", self.refused(f"--{name}", value))
        self.assertIn("--max-body", self.refused(MAX_BODY="lots"))

    def test_numbers_at_their_edges_are_taken(self) -> None:
        """Limits are inclusive."""
        self.assertEqual(parsed("--port", "65535")["port"], 65535)
        self.assertEqual(parsed("--history-length", "1")["history-length"], 1)
        self.assertEqual(parsed("--max-unsent", "1024")["max-unsent"], 1024)
        self.assertEqual(parsed("--max-waiting", "65536")["max-waiting"], 65536)
        self.assertIn("--max-waiting", self.refused(MAX_WAITING="65535"))

    def test_times_of_tasks(self) -> None:
        """The defaults are those of an application's own plumber; each limit at its edges."""
        names = {
            "start-deadline": (DEFAULT_SETTINGS.start_deadline, 1, 2_592_000),
            "task-deadline": (DEFAULT_SETTINGS.patience, 0, 2_592_000),
            "progress-interval": (DEFAULT_SETTINGS.progress_interval, 0, 3600),
            "task-age": (DEFAULT_SETTINGS.age, 1, 316_224_000),
            "hold": (DEFAULT_SETTINGS.hold, 0, 120),
            "callback-rate": (DEFAULT_SETTINGS.callback_rate, 0, 1_000_000),
        }
        for name, (default, least, most) in names.items():
            self.assertEqual(parsed()[name], default)
            for edge in (least, most):
                self.assertEqual(parsed(f"--{name}", str(edge))[name], edge)
            self.assertIn(f"--{name}", self.refused(f"--{name}", str(most + 1)))
            self.assertIn(f"--{name}", self.refused(f"--{name}", str(least - 0.5)))

    def test_not_a_number_is_refused(self) -> None:
        """float() would take nan and inf."""
        for value in ("nan", "inf"):
            self.assertIn("--history-age", self.refused("--history-age", value))

    def test_other_interfaces_need_insecure(self) -> None:
        """Nobody is authenticated, so being reachable must be wanted."""
        for endpoint in (
            "tcp:8080",
            "tcp:8080:interface=0.0.0.0",
            "ssl:8443:interface=10.0.0.1:privateKey=x",
        ):
            try:
                self.assertIn("--", self.refused("--listen", endpoint))
            except UsageError as error:
                self.fail(str(error))
        self.assertEqual(parsed("--listen", "tcp:8080", "--insecure")["listen"], "tcp:8080")

    def test_the_last_of_several_interfaces_counts(self) -> None:
        """
        Twisted takes it: a local one before it opens nothing to others, nor does a name that is
        spelled oddly.
        """
        for endpoint in (
            "tcp:0:interface=127.0.0.1:interface=0.0.0.0",
            "tcp:0:interface=0.0.0.0:interface=127.0.0.1",
            r"tcp:0:interface=127.0.0.1:\interface=0.0.0.0",
            r"tcp:0:interface=127.0.0.1:i\nterface=0.0.0.0",
            "tcp:0:backlog=5:interface=127.0.0.1:interface=",
        ):
            self.assertIn("--listen", self.refused("--listen", endpoint), endpoint)

    def test_loopback_and_unix_sockets_are_safe(self) -> None:
        """In all their spellings."""
        for endpoint in (
            "tcp:8080:interface=127.0.0.1",
            "tcp:8080:interface=localhost",
            r"tcp6:8080:interface=\:\:1",
            "unix:/tmp/plumber",
        ):
            self.assertEqual(parsed("--listen", endpoint)["listen"], endpoint)

    def test_what_is_no_endpoint_is_refused(self) -> None:
        """Twisted's parser says why."""
        self.assertIn("--listen", self.refused("--listen", "carrier-pigeon:8080"))

    def test_what_is_no_store_is_refused_without_its_password(self) -> None:
        """A URI may hold a secret: only its scheme is repeated."""
        message = self.refused("--store", "postgres://user:sesame@db/")
        self.assertIn("--store", message)
        self.assertNotIn("sesame", message)

    def test_a_store_that_cannot_be_written_is_refused(self) -> None:
        """Not half a second after the port was opened."""
        self.assertIn("--store", self.refused("--store", "sqlite:/no/such/folder/x.sqlite"))
        self.assertIn("--store", self.refused("--store", "sqlite:"))

    def test_a_store_with_wrong_words_is_refused(self) -> None:
        """
        By the options, with a sentence, and not by a traceback when everything else is begun, nor
        by each worker again.
        """
        for uri in (
            "sqlite:x?foo=1",
            "sqlite:x?synchronous=off",
            "sqlite::memory:",
            "mongodb://",
            "mongodb://host:port/",
        ):
            self.assertIn("--store", self.refused("--store", uri))
            self.assertIn("--store", self.refused("--store", uri, "--workers", "2"))

    def test_workers_need_something_to_share(self) -> None:
        """Memory is not shared, and TLS is a proxy's business then."""
        self.assertIn("--workers", self.refused("--workers", "2", "--store", "memory:"))
        self.assertIn(
            "--workers",
            self.refused("--workers", "2", "--listen", "haproxy:tcp:8080:interface=127.0.0.1"),
        )

    def test_peers_beyond_the_machine_need_a_secret(self) -> None:
        """What instances tell each other is believed."""
        self.assertIn("--peer-host", self.refused("--peer-host", "10.0.0.1"))
        self.assertEqual(
            parsed("--peer-host", "10.0.0.1", PEER_SECRET="x" * 16)["peer-host"], "10.0.0.1"
        )

    def test_each_worker_has_an_address_of_its_own(self) -> None:
        """One public URL would lead to any of them, and a wildcard to none."""
        self.assertIn(
            "--advertise-url", self.refused("--workers", "2", "--advertise-url", "http://10.0.0.1/")
        )
        self.assertIn("--peer-host", self.refused("--peer-host", "0.0.0.0", PEER_SECRET="x" * 16))

    def test_a_short_secret_is_refused(self) -> None:
        """Sixteen bytes at least, from wherever it comes."""
        self.assertIn("--peer-secret", self.refused(PEER_SECRET="x" * 15))
        self.assertEqual(parsed(PEER_SECRET="x" * 16)["peer-secret"], "x" * 16)
        for content in ("x" * 15, "", "\n"):
            path = self.mktemp()
            Path(path).write_text(content)
            self.assertIn("--peer-secret-file", self.refused("--peer-secret-file", path))

    def test_a_secret_comes_from_a_file(self) -> None:
        """
        One that is named, or that systemd hands over; the line break at its end is none of it.
        """
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / CREDENTIALS["peer-secret-file"]).write_text("a secret that was handed over\n")
        (folder / "other").write_text("a secret in a file of its own\n")
        handed = Options({"CREDENTIALS_DIRECTORY": str(folder)})
        handed.parseOptions([])
        self.assertEqual(handed["peer-secret"], "a secret that was handed over")
        named = parsed("--peer-secret-file", str(folder / "other"))
        self.assertEqual(named["peer-secret"], "a secret in a file of its own")
        found = Options({**named.environment(), "ASYNCPLUMBER_PEER_SECRET_FILE": ""})
        found.parseOptions([])
        self.assertEqual(found["peer-secret"], named["peer-secret"])
        self.assertIn(
            "--peer-secret-file", self.refused("--peer-secret-file", str(folder / "none"))
        )

    def test_a_secret_on_the_command_line_is_refused(self) -> None:
        """
        It shows in the list of processes; and the message does not repeat it. Nor does it help to
        give it twice.
        """
        for environ in ({}, {"PEER_SECRET": "sesame, sesame, sesame"}):
            message = self.refused("--peer-secret", "sesame, sesame, sesame", **environ)
            self.assertIn("--peer-secret-file", message)
            self.assertNotIn("sesame", message)

    def test_there_is_one_secret(self) -> None:
        """
        A file and the environment may say different things; what systemd hands over gives way to
        either.
        """
        path = self.mktemp()
        Path(path).write_text("a secret in a file of its own\n")
        message = self.refused("--peer-secret-file", path, PEER_SECRET="sesame, sesame, sesame")
        self.assertIn("--peer-secret-file", message)
        self.assertNotIn("sesame", message)

    def test_a_secret_file_is_secret_enough_for_other_machines(self) -> None:
        """It is read before that is asked."""
        path = self.mktemp()
        Path(path).write_text("x" * 16)
        self.assertEqual(
            parsed("--peer-host", "10.0.0.1", "--peer-secret-file", path)["peer-secret"], "x" * 16
        )

    def test_origins_are_checked(self) -> None:
        """Several, separated by blanks or commas."""
        self.assertEqual(
            parsed("--allow-origin", "https://a.example, http://b.example:81")["allow-origin"],
            ("https://a.example", "http://b.example:81"),
        )
        self.assertEqual(
            parsed("--allow-origin", "https://*.Example.com:443 *")["allow-origin"],
            ("https://*.example.com", "*"),
        )
        for wrong in ("a.example", "https://*.com", "https://a.example/", "https://a.*.example"):
            self.assertIn("--allow-origin", self.refused("--allow-origin", wrong))

    def test_networks_are_checked(self) -> None:
        """Of proxies and of peers; an instance must be in the networks of its peers itself."""
        options = parsed("--trusted-proxies", "10.0.0.0/8 unix", "--peer-networks", "10.0.0.0/8")
        self.assertEqual(options["trusted-proxies"].unix, True)
        self.assertEqual([str(each) for each in options["peer-networks"]], ["10.0.0.0/8"])
        for option in ("--trusted-proxies", "--peer-networks"):
            self.assertIn(option, self.refused(option, "10.0.0.1/8"))
        advertised = ("--advertise-url", "http://192.0.2.1:8080", "--peer-networks", "10.0.0.0/8")
        self.assertIn("192.0.2.1, of --advertise-url", self.refused(*advertised))
        workers = ("--workers", "2", "--peer-networks", "10.0.0.0/8")
        self.assertIn("127.0.0.1, of --peer-host", self.refused(*workers))
        parsed("--workers", "2", "--peer-networks", "10.0.0.0/8, loopback")

    def test_connections_by_the_limit_of_open_files(self) -> None:
        """Less a reserve, unless a number is given."""
        self.assertEqual(parsed("--max-connections", "7").limits()["max_connections"], 7)
        for soft, most in ((1024, 768), (300, 150), (100_000, 99_744), (1, 1)):
            self.patch(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
            self.assertEqual(parsed().limits()["max_connections"], most)
        unlimited = resource.RLIM_INFINITY
        self.patch(resource, "getrlimit", lambda _: (unlimited, unlimited))
        self.assertIsNone(parsed().limits()["max_connections"])

    def test_urls_are_checked(self) -> None:
        """The other instances must be able to use it."""
        self.assertIn("--advertise-url", self.refused("--advertise-url", "10.0.0.7:8080"))

    def test_a_worker_finds_the_same_options(self) -> None:
        """They travel by the environment, where a secret does not show in the list of processes."""
        given = parsed(
            "--history-age",
            "60",
            "--workers",
            "3",
            "--insecure",
            "--page",
            "--log-requests",
            "--log-level",
            "debug",
            "--listen",
            "tcp:0",
            PEER_SECRET="x" * 16,
        )
        found = Options(given.environment())
        found.parseOptions([])
        names = ("history-age", "peer-secret", "insecure", "page", "log-requests", "log-level")
        self.assertEqual([found[name] for name in names], [60.0, "x" * 16, 1, 1, 1, "debug"])


class HumanTests(TestCase):
    """Numbers with units, the help, and what a wrong option says."""

    def test_numbers_have_units(self) -> None:
        """On the command line and in the environment."""
        options = parsed("--history-age", "2d", "--max-body", "1MB", LEASE="1min")
        self.assertEqual(options["history-age"], 172800)
        self.assertEqual(options["max-body"], 10**6)
        self.assertEqual(options["lease"], 60)

    def test_a_default_is_within_its_bounds(self) -> None:
        """Each of them is read like what a user gives."""
        for option in OPTIONS.values():
            if option.convert is not None:
                option.convert(option.default)

    def test_the_help_groups_all_options(self) -> None:
        """By what they are for, within 80 columns."""
        text = Options().getUsage()
        at = [text.index(f"{title}:") for title in GROUPS]
        self.assertEqual(at, sorted(at))
        for option in OPTIONS.values():
            name = f"--{option.name}{option.value and f'={option.value}'}"
            self.assertIn(f"{name}  ", text)
        self.assertIn("--insecure", text)
        self.assertLessEqual(max(map(len, text.splitlines())), 80)

    def test_a_wrong_variable_is_named(self) -> None:
        """Nobody finds an option that was never typed."""
        error = self.assertRaises(UsageError, parsed, MAX_BODY="lots")
        self.assertIn("--max-body (from ASYNCPLUMBER_MAX_BODY): 'lots'", str(error))
        error = self.assertRaises(UsageError, parsed, "--max-body", "lots", MAX_BODY="1MB")
        self.assertNotIn("ASYNCPLUMBER", str(error))

    def test_under_twistd_the_sentence_comes_first(self) -> None:
        """And the usage of twistd, which is a page long, not at all."""
        for words in (["--max-body", "lots"], ["--no-such-option"], ["--history-age", "1MB"]):
            options = Options({})
            options.parent = ServerOptions()
            self.patch(sys, "stderr", io.StringIO())
            self.assertEqual(self.assertRaises(SystemExit, options.parseOptions, words).code, 1)
            said = sys.stderr.getvalue()
            self.assertTrue(said.startswith("asyncplumber: "), said)
            self.assertIn(words[0].lstrip("-"), said.splitlines()[0])
            self.assertEqual(len(said.splitlines()), 2)
