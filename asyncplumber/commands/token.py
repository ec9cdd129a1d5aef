"""``asyncplumber token``: makes a token for the shell, for a test, for a cron job."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from twisted.python import usage

from asyncplumber.auth.secret_files import read_secret_file
from asyncplumber.auth.tokens.claims import MAX_AGE
from asyncplumber.auth.tokens.mint import AUDIENCE, mint
from asyncplumber.auth.tokens.signing_keys import parse_secrets
from asyncplumber.server.units import duration

_HOURS = int(MAX_AGE) // 3600


class Command(usage.Options):
    """What the token says."""

    synopsis = "Usage: asyncplumber token --secret-file FILE --sub NAME [options]"
    longdesc = (
        "Prints a token, signed with the first secret of the file.  What gives access to accounts "
        "may be repeated."
    )
    optParameters = [
        ["secret-file", None, "", "The file that the server has as --jwt-secret-file."],
        ["sub", None, "", "Who it is for: the unit of limits and of revocation."],
        ["expires", None, "1h", f"How long it is valid: {_HOURS}h at most."],
        ["audience", None, AUDIENCE, "That of the server."],
        ["issuer", None, "", "The name of the issuer, for a server with several."],
        ["id", None, "", "An id, by which this one token can be revoked."],
    ]
    optFlags = [
        ["subscribe-all", None, "It may read the events of all accounts."],
        ["publish-all", None, "It may post to all accounts."],
        ["start-all", None, "It may start and cancel tasks of all accounts."],
    ]

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._lists: dict[str, list[Any]] = {"subscribe": [], "publish": [], "start": []}
        self["secret-file"] = environ.get("ASYNCPLUMBER_JWT_SECRET_FILE", "")
        self["audience"] = environ.get("ASYNCPLUMBER_AUDIENCE", AUDIENCE)

    def getSynopsis(self) -> str:
        """Return the usage line, without that of the command before it."""
        return self.synopsis

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"asyncplumber {version('asyncplumber')}")
        raise SystemExit(0)

    def opt_subscribe(self, account: str) -> None:
        """It may read the events of this account."""
        self._lists["subscribe"].append(account)

    def opt_publish(self, account: str) -> None:
        """It may post to this account."""
        self._lists["publish"].append(account)

    def opt_start(self, account: str) -> None:
        """It may start and cancel tasks of this account."""
        self._lists["start"].append(account)

    def opt_subscribe_prefix(self, prefix: str) -> None:
        """It may read the events of all accounts that begin so."""
        self._lists["subscribe"].append({"prefix": prefix})

    def opt_publish_prefix(self, prefix: str) -> None:
        """It may post to all accounts that begin so."""
        self._lists["publish"].append({"prefix": prefix})

    def opt_start_prefix(self, prefix: str) -> None:
        """It may start and cancel tasks of all accounts that begin so."""
        self._lists["start"].append({"prefix": prefix})

    def postOptions(self) -> None:
        """
        Make the token.

        Raises:
            UsageError: Something is missing or wrong.
        """
        if not self["secret-file"]:
            raise usage.UsageError("--secret-file: name the file with the secret of the server")
        if not self["sub"]:
            raise usage.UsageError("--sub: say who the token is for, such as user-42")
        for name, entries in self._lists.items():
            if self[f"{name}-all"]:
                entries.append({"all": True})
        if not any(self._lists.values()):
            raise usage.UsageError(
                "--subscribe, --publish, --start: name an account, or the token allows nothing"
            )
        try:
            expires_in = duration(1, MAX_AGE)(self["expires"])
        except ValueError as error:
            raise usage.UsageError(f"--expires: {error}") from None
        try:
            secret = parse_secrets(read_secret_file(self["secret-file"]))[0]
        except ValueError as error:
            raise usage.UsageError(f"--secret-file: {error}") from None
        try:
            self._token = mint(
                secret,
                self["sub"],
                subscribe=self._lists["subscribe"],
                publish=self._lists["publish"],
                start=self._lists["start"],
                expires_in=expires_in,
                audience=self["audience"] or AUDIENCE,
                issuer=self["issuer"] or None,
                id=self["id"] or None,
            )
        except ValueError as error:
            raise usage.UsageError(str(error)) from None

    def run(self) -> int:
        """Print it."""
        sys.stdout.write(self._token + "\n")
        return 0
