"""The how-to about authentication, as its reader follows it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from asyncplumber.auth.tokens.claims import PLAIN_TYPES, Rules
from asyncplumber.auth.tokens.signing_keys import Secrets, parse_secrets
from asyncplumber.auth.tokens.verifier import Issuer, Verifier
from asyncplumber.grant import Accounts, Action, Grant
from harness.documents import named_blocks
from harness.ports import reserve_port
from harness.processes import ROOT, Process
from harness.tokens import encode, sign

SECRET = "a secret of the page, with 32 bytes or more"
_IMPORTS = "from __future__ import annotations\nimport time\n"

# What jsonwebtoken does with these arguments, in a few lines.
_NODE = """
const { createHmac } = require("node:crypto");
const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const jwt = {
  sign(payload, secret, { audience, subject, expiresIn }) {
    if (expiresIn !== "1h") throw new Error(expiresIn);
    const iat = Math.floor(Date.now() / 1000);
    const claims = { ...payload, iat, exp: iat + 3600, aud: audience, sub: subject };
    const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
    return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
  },
};
const app = {
  get(path, view) {
    view({ user: { id: 42 } }, { send: (text) => process.stdout.write(text) });
  },
};
"""


def pyjwt(claims: dict[str, Any], key: str, algorithm: str) -> str:
    """Return the token that ``jwt.encode`` of PyJWT returns."""
    signed = encode({"typ": "JWT", "alg": algorithm}) + b"." + encode(claims)
    return (signed + b"." + encode(sign(key.encode(), algorithm, signed))).decode("ascii")


def as_it_is(*_: Any, **__: Any) -> Any:
    """Return a decorator that changes nothing."""
    return lambda view: view


class PageTests(SynchronousTestCase):
    """Its commands and its programs."""

    def setUp(self) -> None:
        self.blocks = named_blocks("howto/authenticate.rst")

    def check(self, token: str, secret: str = SECRET) -> None:
        """The token is that of user 42, who may subscribe and not publish."""
        issuer = Issuer(
            Rules(audience="asyncplumber", types=PLAIN_TYPES), Secrets([secret.encode()])
        )
        grant = Verifier({}, time.time, issuer).grant(token, Action.SUBSCRIBE)
        assert isinstance(grant, Grant)
        self.assertEqual(grant.subject, "user-42")
        self.assertEqual(grant.subscribe, Accounts(frozenset(["user-42"])))
        self.assertFalse(grant.publish)

    def run_python(self, name: str, **names: Any) -> dict[str, Any]:
        """Run a program of the page, with these names in it."""
        names = {"jwt": SimpleNamespace(encode=pyjwt), "SECRET": SECRET, **names}
        exec(_IMPORTS + self.blocks[name], names)
        return names

    def test_django(self) -> None:
        """A view."""
        view = self.run_python("django_view.py", login_required=as_it_is(), HttpResponse=str)
        user = SimpleNamespace(pk=42)
        self.check(view["push_token"](SimpleNamespace(user=user)))

    def test_flask(self) -> None:
        """A route."""
        view = self.run_python(
            "flask_view.py",
            app=SimpleNamespace(get=as_it_is),
            login_required=as_it_is(),
            current_user=SimpleNamespace(id=42),
        )
        self.check(view["push_token"]())

    def test_fastapi(self) -> None:
        """A path operation."""
        view = self.run_python(
            "fastapi_view.py",
            app=SimpleNamespace(get=as_it_is),
            PlainTextResponse=str,
            Depends=lambda dependency: None,
            current_user=None,
        )
        self.check(view["push_token"](SimpleNamespace(id=42)))

    def test_without_a_library(self) -> None:
        """Only with ours."""
        self.check(self.run_python("mint.py")["token"])

    def test_node(self) -> None:
        """In a real one."""
        node = shutil.which("node")
        if node is None:
            raise SkipTest("there is no node on the PATH")
        program = f"{_NODE}const SECRET = {json.dumps(SECRET)};\n{self.blocks['node_view.js']}"
        found = subprocess.run([node, "-e", program], capture_output=True, text=True, timeout=60)
        self.assertEqual(found.returncode, 0, found.stderr)
        self.check(found.stdout)

    def test_the_payload(self) -> None:
        """It has the claims of which the page speaks, and is a good one."""
        payload = json.loads(self.blocks["payload.json"])
        issuer = Issuer(
            Rules(audience="asyncplumber", types=PLAIN_TYPES), Secrets([SECRET.encode()])
        )
        verifier = Verifier({}, lambda: payload["exp"] - 3600.0, issuer)
        grant = verifier.grant(pyjwt(payload, SECRET, "HS256"), Action.SUBSCRIBE)
        assert isinstance(grant, Grant)
        self.assertIn("team-7.x", grant.subscribe)


class CommandTests(SynchronousTestCase):
    """The commands, in a folder of their own and with another port."""

    def setUp(self) -> None:
        self.blocks = named_blocks("howto/authenticate.rst")
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        command = self.folder / "asyncplumber"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m asyncplumber "$@"\n')
        command.chmod(0o755)
        self.port = str(reserve_port())
        self.environ = {
            "PATH": f"{self.folder}:/usr/bin:/bin:/usr/local/bin",
            "PYTHONPATH": str(ROOT),
        }

    def text(self, name: str) -> str:
        return self.blocks[name].replace("8080", self.port)

    def run_command(self, name: str) -> str:
        """Run a command to its end, and return what it printed."""
        found = subprocess.run(
            ["sh", "-ec", self.text(name)],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(found.returncode, 0, found.stderr)
        return found.stdout

    def test_from_nothing_to_a_result(self) -> None:
        """Secrets, a server, a sender, a receiver."""
        if shutil.which("curl") is None or shutil.which("openssl") is None:
            raise SkipTest("there is no curl, or no openssl")
        self.run_command("secrets.sh")
        for name in ("jwt.secret", "publisher.keys"):
            self.assertEqual((self.folder / name).stat().st_mode & 0o777, 0o600)
        server = Process(
            ["sh", "-c", f"cd '{self.folder}' && exec {self.text('serve.sh')}"], self.environ
        )
        self.addCleanup(server.kill)
        server.wait_for("asyncplumber is ready")
        self.assertIn('"data":{"total": 7}', self.run_command("use.sh"))

    def test_the_secret_is_changed(self) -> None:
        """First there are two, then only the new one."""
        if shutil.which("openssl") is None:
            raise SkipTest("there is no openssl")
        self.run_command("secrets.sh")
        path = self.folder / "jwt.secret"
        [old] = parse_secrets(path.read_bytes())
        self.run_command("rotate-1.sh")
        first, new = parse_secrets(path.read_bytes())
        self.assertEqual(first, old)
        self.run_command("rotate-2.sh")
        self.assertEqual(parse_secrets(path.read_bytes()), (new,))
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
