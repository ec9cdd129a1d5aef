"""The section "Go public" of the README, line by line, with a real Chromium."""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from twisted.trial.unittest import SynchronousTestCase

from harness import browser
from harness.app_site import AppSite
from harness.certificates import Authority
from harness.ports import reserve_port
from harness.processes import ROOT, Process

NAMES = ("push.example.com", "app.example.com")
# What the page's ``console.log`` shows, and what the browser has been told.
NOTE = """
    <script>
      window.logged = [];
      console.log = (...words) => logged.push(words);
    </script>
"""


def section(title: str) -> str:
    """Return a section of the README."""
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    return text.partition(f"\n{title}\n{'-' * len(title)}\n")[2].partition("\n---")[0]


class GoPublicTests(SynchronousTestCase):
    """From nothing to a browser on another origin that receives an event over TLS."""

    skip = browser.missing()

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        text = section("Go public")
        blocks = [dedent(block) for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", text)]
        self.setting_up, self.token, self.script, self.sending = blocks
        self.port = reserve_port()
        self.make_certificates()
        self.make_environment()

    def make_certificates(self) -> None:
        """Make the files that a certificate authority would give."""
        authority = Authority()
        key, certificate = authority.issue(*NAMES)
        (self.folder / "privkey.pem").write_bytes(key)
        (self.folder / "cert.pem").write_bytes(certificate)
        (self.folder / "chain.pem").write_bytes(authority.certificate)
        # Chromium trusts the public key of this one certificate.
        self.pin = base64.b64encode(hashlib.sha256(authority.public_key_of(certificate)).digest())

    def make_environment(self) -> None:
        """Let the commands find the program, the server and the certificate authority."""
        program = self.folder / "bin" / "asyncplumber"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m asyncplumber "$@"\n')
        program.chmod(0o755)
        # In place of an entry in the DNS, and of port 443, which only root may open.
        (self.folder / ".curlrc").write_text(
            f'silent\nshow-error\nconnect-to = "push.example.com:443:127.0.0.1:{self.port}"\n'
        )
        self.environ = {
            "HOME": str(self.folder),
            "PATH": f"{program.parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "CURL_CA_BUNDLE": str(self.folder / "chain.pem"),
        }

    def run_command(self, command: str) -> str:
        """Run lines of the README, and return what they print."""
        done = subprocess.run(
            ["sh", "-ec", command],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def start(self) -> Process:
        """Run the lines that set up the server, and wait until it is ready."""
        setting_up, _, serving = self.setting_up.partition("asyncplumber serve")
        self.run_command(setting_up)
        serving = f"asyncplumber serve{serving}".replace(
            "ssl:443:", f"ssl:{self.port}:interface=127.0.0.1:"
        )
        process = Process(["sh", "-ec", f"cd '{self.folder}'; exec {serving}"], self.environ)
        self.addCleanup(process.kill)
        process.wait_for("asyncplumber is ready at")
        return process

    def start_application(self) -> AppSite:
        """Serve the page of the README, and tokens as its command makes them."""
        site = AppSite(lambda: self.run_command(self.token).strip(), path="/push-token")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "cert.pem", self.folder / "privkey.pem")
        site.socket = context.wrap_socket(site.socket, server_side=True)
        site.page = f"<!doctype html><title>an application</title>{NOTE}{self.script}"
        self.addCleanup(site.stop)
        return site

    def open_page(self, site: AppSite) -> browser.Browser:
        """Open the application in a browser that finds both servers by their public names."""
        push, app = NAMES
        page = browser.Browser(
            f"--host-resolver-rules=MAP {push}:443 127.0.0.1:{self.port},"
            f"MAP {app}:443 127.0.0.1:{site.port}",
            f"--ignore-certificate-errors-spki-list={self.pin.decode()}",
        )
        self.addCleanup(page.quit)
        page.go(f"https://{app}/")
        return page

    def test_a_browser_on_another_origin_receives_an_event_over_tls(self) -> None:
        """Each line as it is written, except for the number of the port."""
        server = self.start()
        page = self.open_page(self.start_application())
        page.until("return plumber.state === 'open'")
        receipt = self.run_command(self.sending)
        self.assertRegex(receipt, r'^\{"status":"ok",.*"subscribers":1,')
        page.until("return logged.length")
        found = page.run("return [location.origin, plumber.url, plumber.transport, logged]")
        self.assertEqual(
            found,
            [
                "https://app.example.com",
                "https://push.example.com/events/user-42",
                "websocket",
                [["result", {"total": 7}]],
            ],
        )
        self.assertEqual(page.errors(), [])
        for name in ("jwt.secret", "publisher.key"):
            self.assertNotIn((self.folder / name).read_text().strip(), server.output)

    def test_nothing_is_open_to_others(self) -> None:
        """Without a credential nothing but probes and the client is answered."""
        self.start()
        ask = "curl -o /dev/null -w '%{http_code} ' https://push.example.com"
        paths = ("/events/user-42", "/accounts/user-42", "/metrics", "/hooks/a", "/nothing")
        codes = "".join(self.run_command(f"{ask}{path}") for path in paths)
        self.assertEqual(codes, "401 " * 5)
        self.assertEqual(self.run_command(f"{ask}/"), "404 ")
        for path in ("/healthz", "/readyz", "/asyncplumber.js"):
            self.assertEqual(self.run_command(f"{ask}{path}"), "200 ")

    def test_the_two_lines_need_no_insecure(self) -> None:
        """The very words of the README are options that are accepted."""
        self.run_command(self.setting_up.partition("asyncplumber serve")[0])
        words = self.setting_up.partition("asyncplumber serve")[2].replace("\\\n", " ")
        check = "import sys; from asyncplumber.options import Options; "
        check += "Options().parseOptions(sys.argv[1:])"
        self.run_command(f"'{sys.executable}' -c '{check}' {words}")
