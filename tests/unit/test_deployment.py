"""The examples for systemd and Kubernetes name what exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.option_list import FLAGS, OPTIONS
from asyncplumber.options import CREDENTIALS

try:
    import yaml
except ImportError:
    yaml = None  # type: ignore[assignment]

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "docs/examples"
VARIABLES = {option.variable for option in OPTIONS.values()}


class SystemdTests(SynchronousTestCase):
    """``asyncplumber.service``."""

    def setUp(self) -> None:
        self.unit = (EXAMPLES / "asyncplumber.service").read_text(encoding="utf-8")

    def test_its_credentials_are_those_that_the_server_looks_for(self) -> None:
        """By another name they would be ignored, and the server would not be protected."""
        names = re.findall(r"^#?LoadCredential=([^:]+):", self.unit, re.MULTILINE)
        self.assertEqual(sorted(names), sorted(CREDENTIALS.values()))

    def test_it_is_the_command(self) -> None:
        """The console script, whose options exist."""
        [words] = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", self.unit, re.MULTILINE)
        path, subcommand, *_ = words.split()
        self.assertTrue(path.endswith("/bin/asyncplumber"))
        self.assertEqual(subcommand, "serve")
        for name in re.findall(r"--([a-z-]+)", words):
            self.assertIn(name, OPTIONS)


class KubernetesTests(SynchronousTestCase):
    """``kubernetes.yaml``."""

    skip = None if yaml else "PyYAML is not installed (it is one of the test extra)"

    def setUp(self) -> None:
        text = (EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8")
        self.documents: list[dict[str, Any]] = list(yaml.safe_load_all(text))
        self.deployment = next(each for each in self.documents if each["kind"] == "Deployment")
        self.pod = self.deployment["spec"]["template"]["spec"]
        [self.container] = self.pod["containers"]

    def of_kind(self, kind: str) -> Iterator[dict[str, Any]]:
        return (each for each in self.documents if each["kind"] == kind)

    def test_each_option_and_variable_exists(self) -> None:
        """With a value that the option takes; the address of the pod is known later."""
        for argument in self.container["args"]:
            name, _, value = argument.removeprefix("--").partition("=")
            if name in FLAGS:
                continue
            convert = OPTIONS[name].convert
            if convert is not None:
                convert(value.replace("$(POD_IP)", "10.0.0.7"))
        for variable in self.container["env"]:
            if variable["name"] != "POD_IP":
                self.assertIn(variable["name"], VARIABLES)

    def test_the_files_are_mounted_where_the_options_look(self) -> None:
        """Nobody but the server's group reads them, or the server would refuse them."""
        [mount] = [each for each in self.container["volumeMounts"] if each["name"] == "secrets"]
        [volume] = [each for each in self.pod["volumes"] if each["name"] == "secrets"]
        files = {f"{mount['mountPath']}/{item['path']}" for item in volume["secret"]["items"]}
        given = {
            argument.partition("=")[2] for argument in self.container["args"] if "file=" in argument
        }
        self.assertEqual(given, files)
        self.assertEqual(volume["secret"]["defaultMode"], 0o440)
        self.assertEqual(
            self.pod["securityContext"]["fsGroup"], self.pod["securityContext"]["runAsGroup"]
        )

    def test_ports_and_labels_belong_together(self) -> None:
        """Services find the pods, probes ask paths that need no credential."""
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        listened = [
            int(re.findall(r"tcp:(\d+)", each)[0])
            for each in self.container["args"]
            if "tcp:" in each
        ]
        self.assertEqual(sorted(ports.values()), sorted(listened))
        labels = self.deployment["spec"]["template"]["metadata"]["labels"]
        for service in self.of_kind("Service"):
            self.assertEqual(service["spec"]["selector"], labels)
            for port in service["spec"]["ports"]:
                self.assertIn(port["targetPort"], ports)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = self.container[probe]["httpGet"]
            self.assertIn(asked["path"], ("/healthz", "/readyz"))
            self.assertIn(asked["port"], ports)

    def test_a_stop_has_time_enough(self) -> None:
        """The pause before it, and the 20 seconds that it may take."""
        pause = self.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        self.assertGreaterEqual(self.pod["terminationGracePeriodSeconds"], pause + 25)
