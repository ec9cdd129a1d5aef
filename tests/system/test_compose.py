"""The compose file and its Dockerfile, as far as they can be tried without Docker."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from secrets import token_hex
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.options import Options

try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "docs/examples"


class ComposeTests(SynchronousTestCase):
    """The names in one file exist in the other."""

    skip = None if yaml else "PyYAML is not installed (it is one of the test extra)"

    def setUp(self) -> None:
        self.compose: dict[str, Any] = yaml.safe_load(
            (EXAMPLES / "compose.yaml").read_text(encoding="utf-8")
        )
        self.services: dict[str, Any] = self.compose["services"]
        self.instances = {name: each for name, each in self.services.items() if "build" in each}
        self.dockerfile = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")

    def instruction(self, name: str) -> list[str]:
        """Return the words of an instruction of the Dockerfile that occurs once, in JSON."""
        (line,) = re.findall(rf"^{name} (\[.*\])$", self.dockerfile, re.MULTILINE)
        words: list[str] = json.loads(line)
        return words

    def test_it_is_built_from_this_repository(self) -> None:
        """Context and Dockerfile are there, and everything that is copied."""
        self.assertEqual(len(self.instances), 3)
        for service in self.instances.values():
            context = (EXAMPLES / service["build"]["context"]).resolve()
            self.assertEqual(
                (context / service["build"]["dockerfile"]).resolve(), EXAMPLES / "Dockerfile"
            )
            for line in re.findall(r"^COPY (.*)$", self.dockerfile, re.MULTILINE):
                *sources, _ = shlex.split(line)
                for source in sources:
                    self.assertTrue((context / source).exists(), source)

    def test_what_the_package_needs_is_copied(self) -> None:
        """All that setup.cfg, pyproject.toml and MANIFEST.in name for the package itself."""
        copied = {
            word
            for line in re.findall(r"^COPY (.*) ", self.dockerfile, re.MULTILINE)
            for word in line.split()
        }
        self.assertLessEqual(
            {"setup.cfg", "pyproject.toml", "README.rst", "LICENSE", "asyncplumber", "twisted"},
            copied,
        )

    def test_nginx_knows_the_instances(self) -> None:
        """Its upstreams are their names, with the port on which they listen."""
        config = (EXAMPLES / "nginx.conf").read_text(encoding="utf-8")
        upstreams = re.findall(r"^    server (\w+):(\d+) ", config, re.MULTILINE)
        listen = self.instruction("CMD")[1]
        self.assertEqual(
            upstreams, [(name, listen.removeprefix("tcp:")) for name in self.instances]
        )
        nginx = self.services["nginx"]
        file, inside, _ = nginx["volumes"][0].split(":")
        self.assertEqual((EXAMPLES / file).resolve(), EXAMPLES / "nginx.conf")
        self.assertEqual(inside, "/etc/nginx/conf.d/default.conf")
        published = nginx["ports"][0].rpartition(":")[2]
        self.assertIn(f"listen {published};", config)

    def test_all_depend_on_what_is_there(self) -> None:
        """A service that others wait for has a health check."""
        for service in self.services.values():
            for name, how in service.get("depends_on", {}).items():
                self.assertIn(name, self.services)
                self.assertEqual(how, {"condition": "service_healthy"})
                self.assertIn("healthcheck", self.services[name])
        for volume in (
            each for service in self.services.values() for each in service.get("volumes", [])
        ):
            source = volume.partition(":")[0]
            self.assertTrue(source.startswith("./") or source in self.compose["volumes"], volume)

    def test_the_options_are_taken(self) -> None:
        """With the environment as compose sets it, with and without a public name."""
        program, *words = self.instruction("ENTRYPOINT")
        self.assertEqual([program, *words[:1]], ["asyncplumber", "serve"])
        words = words[1:] + self.instruction("CMD")
        for name, service in self.instances.items():
            for host in ("", "push.example.com"):
                environ = {
                    key: value.replace("${PLUMBER_HOST:-}", host)
                    for key, value in service["environment"].items()
                }
                self.assertNotIn("$", "".join(environ.values()))
                for name_of_file in ("JWT_SECRET_FILE", "PUBLISHER_KEY_FILE"):
                    variable = f"ASYNCPLUMBER_{name_of_file}"
                    environ[variable] = self.secret(environ[variable], service)
                options = Options(environ)
                options.parseOptions(words)
                self.assertEqual(options["advertise-url"], f"http://{name}:8080")
                self.assertTrue(options["store"].startswith("mongodb://mongo/"))
                self.assertIn("mongo", self.services)

    def secret(self, path: str, service: dict[str, Any]) -> str:
        """Check that a secret is mounted at this path; return a file with one."""
        name = path.removeprefix("/run/secrets/")
        self.assertIn(name, service["secrets"])
        self.assertIn(name, self.compose["secrets"])
        file = Path(self.mktemp())
        file.touch(0o600)
        file.write_text(token_hex(32))
        return str(file.resolve())

    def test_addresses_are_in_the_network(self) -> None:
        """Each has an address of its own."""
        (network,) = self.compose["networks"]["default"]["ipam"]["config"]
        prefix = network["subnet"].removesuffix("0/24")
        addresses = {
            service["networks"]["default"]["ipv4_address"] for service in self.instances.values()
        }
        self.assertEqual(len(addresses), len(self.instances))
        self.assertTrue(all(address.startswith(prefix) for address in addresses))
