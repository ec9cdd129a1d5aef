"""Callback URLs are made, listed and removed by those who may publish to their account."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from asyncplumber.core.tasks.callback_urls import LONGEST
from asyncplumber.errors import Unauthenticated
from asyncplumber.event import timestamp
from asyncplumber.grant import Accounts, Grant
from asyncplumber.http.callback_pages import DEFAULT_LIFETIME, PREFIX_LENGTH
from asyncplumber.interfaces import Facts, IAuthority
from asyncplumber.testing import NOW
from harness.mounted import MountedServer
from tests.callback_client import BASE, CallbackCase


@implementer(IAuthority)
class Publishers:
    """``Bearer NAME`` may publish to the account NAME, and ``Bearer reads`` only reads."""

    def grant(self, facts: Facts) -> Grant:
        word, _, name = facts.headers.get(b"authorization", b"").decode().partition(" ")
        if word != "Bearer":
            raise Unauthenticated
        accounts = Accounts(frozenset({name}))
        if name == "reads":
            return Grant(name, subscribe=Accounts(frozenset({"42"})))
        return Grant(name, publish=accounts)


class MintTests(CallbackCase, SynchronousTestCase):
    """``POST /callbacks``."""

    def refused(self, **members: Any) -> str:
        """Return why this is refused."""
        body = json.dumps({"account": "42", **members}).encode()
        reply = self.server.request("POST", "/callbacks", body=body)
        self.assertEqual(reply.status, 400, members)
        message: str = json.loads(reply.body)["error"]["message"]
        return message

    def test_a_url_of_an_account(self) -> None:
        told = self.mint()
        token = told["token"]
        self.assertEqual(
            told,
            {
                "url": f"{BASE}/callbacks/{token}",
                "token": token,
                "id": told["id"],
                "account": "42",
                "expires": timestamp(NOW + DEFAULT_LIFETIME),
                "verify": "none",
            },
        )
        self.assertEqual(len(token), 22)

    def test_a_url_of_a_task(self) -> None:
        told = self.mint(task="t", run="r1", expires_in=60)
        url = told["url"]
        self.assertEqual((told["task"], told["run"], told["ends"]), ("t", "r1", True))
        self.assertEqual(told["expires"], timestamp(NOW + 60))
        words = ("running", "completed", "failed", "canceled")
        self.assertEqual(told["states"], {word: f"{url}?state={word}" for word in words})
        self.assertEqual(told["a2a"], {"url": url, "token": told["token"]})

    def test_a_url_that_ends_nothing_offers_no_ends(self) -> None:
        self.assertEqual(list(self.mint(task="t", ends=False)["states"]), ["running"])

    def test_an_agent_of_a2a_is_told_how_to_prove_itself(self) -> None:
        told = self.mint(task="t", verify={"scheme": "bearer"})
        self.assertEqual(
            told["a2a"]["authentication"], {"scheme": "Bearer", "credentials": told["secret"]}
        )

    def test_without_a_run_it_is_the_live_one_or_a_new_one(self) -> None:
        first = self.mint(task="t")
        self.assertNotEqual(first["run"], self.mint(task="t")["run"])
        path = first["url"].removeprefix(BASE)
        self.post(f"{path}?state=running")
        self.assertEqual(self.mint(task="t")["run"], first["run"])
        self.post(path, 1)
        self.assertNotEqual(self.mint(task="t")["run"], first["run"])

    def test_the_public_url_is_where_it_begins(self) -> None:
        self.server.plumber.public_url = "https://push.example/plumber/"
        self.assertTrue(self.mint()["url"].startswith("https://push.example/plumber/callbacks/"))

    def test_its_host_is_one_of_the_servers_names(self) -> None:
        server = self.make_server(plumber={"public_url": "https://push.example/plumber"})
        for host, expected in (("push.example", 202), ("other.example", 421)):
            request = f"POST /hooks/a HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1\r\n\r\n1"
            [reply] = server.exchange(request.encode())
            self.assertEqual(reply.status, expected)

    def test_only_a_new_secret_is_told(self) -> None:
        self.assertIn("secret", self.mint(verify={"scheme": "standard"}))
        given = {"scheme": "github", "secret": "x" * 20}
        told = self.mint(verify=given)
        self.assertNotIn("secret", told)
        self.assertNotIn("x" * 20, json.dumps(told))

    def test_what_cannot_be_is_refused(self) -> None:
        for members in (
            {"account": None},
            {"account": 42},
            {"account": ""},
            {"task": ""},
            {"task": 7},
            {"task": "x" * 257},
            {"run": "r"},
            {"task": "t", "run": ""},
            {"task": "t", "run": 7},
            {"expires_in": 0},
            {"expires_in": LONGEST + 1},
            {"expires_in": "60"},
            {"expires_in": True},
            {"expires_in": 10**400},
            {"ends": True},
            {"task": "t", "ends": 1},
            {"state": "/s"},
            {"task": "t", "state": "s"},
            {"task": "t", "state": 7},
            {"task": "t", "type": "x"},
            {"type": ""},
            {"type": "plumber.x"},
            {"type": "x" * (PREFIX_LENGTH + 1)},
            {"verify": "github"},
            {"verify": {}},
            {"verify": {"scheme": "md5"}},
            {"verify": {"scheme": ["github"]}},
            {"verify": {"scheme": "none", "secret": "x" * 20}},
            {"verify": {"scheme": "stripe"}},
            {"verify": {"scheme": "github", "secret": "short"}},
            {"verify": {"scheme": "github", "secrets": "x" * 20}},
            {"unknown": 1},
        ):
            self.refused(**members)

    def test_what_is_just_possible_is_taken(self) -> None:
        for members in (
            {"expires_in": 1},
            {"expires_in": LONGEST},
            {"task": "x" * 256, "run": "r" * 256},
            {"task": "t", "run": None},
            {"type": "x" * PREFIX_LENGTH},
            {"verify": {"scheme": "none"}},
        ):
            self.mint(**members)

    def test_the_answer_is_not_kept(self) -> None:
        reply = self.server.request("POST", "/callbacks", body=b'{"account": "42"}')
        self.assertEqual(reply.headers[b"cache-control"], b"no-store")


class MountedMintTests(MintTests):
    """The same in a site of another application."""

    make_server = MountedServer


class ListTests(CallbackCase, SynchronousTestCase):
    """``GET /callbacks`` and ``DELETE``."""

    def listed(self, account: str = "42") -> list[dict[str, Any]]:
        """Return the URLs of an account."""
        reply = self.get(f"/callbacks?account={account}")
        self.assertEqual(reply.status, 200)
        found: list[dict[str, Any]] = json.loads(reply.body)["callbacks"]
        return found

    def test_a_list_has_no_token_and_no_secret(self) -> None:
        first = self.mint(task="t", state="/s", verify={"scheme": "github"})
        second = self.mint(type="x.")
        self.mint("43")
        found = {row["id"]: row for row in self.listed()}
        self.assertEqual(set(found), {first["id"], second["id"]})
        for name in ("task", "run", "ends", "state", "verify", "expires", "account"):
            self.assertEqual(found[first["id"]][name], first[name])
        text = json.dumps(found)
        for secret in (first["token"], second["token"], first["secret"]):
            self.assertNotIn(secret, text)

    def test_one_that_has_expired_is_not_listed(self) -> None:
        self.mint(expires_in=60)
        self.server.advance(60)
        self.assertEqual(self.listed(), [])

    def test_one_is_removed_by_its_id_or_its_token(self) -> None:
        first, second = self.mint(), self.mint()
        for path in (f"{first['id']}?account=42", second["token"]):
            self.assertEqual(self.server.request("DELETE", f"/callbacks/{path}").status, 200)
            self.assertEqual(self.server.request("DELETE", f"/callbacks/{path}").status, 404)
        self.assertEqual(self.listed(), [])
        self.assertEqual(self.post(f"/callbacks/{first['token']}", 1)[0], 404)

    def test_an_id_is_looked_for_in_its_account_only(self) -> None:
        told = self.mint()
        for query in ("", "?account=43"):
            path = f"/callbacks/{told['id']}{query}"
            self.assertEqual(self.server.request("DELETE", path).status, 404)
        self.assertEqual(len(self.listed()), 1)

    def test_a_list_is_that_of_one_account(self) -> None:
        self.assertEqual(self.get("/callbacks").status, 400)
        self.assertEqual(self.get("/callbacks?account=").status, 400)


class RightTests(CallbackCase, SynchronousTestCase):
    """Making, listing and removing URLs needs the right to publish."""

    plumber = {"authority": Publishers()}

    def asked(self, method: str, path: str, name: str | None, body: bytes = b"") -> int:
        """Return the status of an answer."""
        headers = [] if name is None else [("Authorization", f"Bearer {name}")]
        return self.server.request(method, path, headers, body).status

    def test_each_needs_the_right_to_publish_to_the_account(self) -> None:
        body = b'{"account": "42"}'
        for name, expected in ((None, 401), ("43", 403), ("reads", 403), ("42", 201)):
            self.assertEqual(self.asked("POST", "/callbacks", name, body), expected, name)
        headers = [("Authorization", "Bearer 42")]
        told = json.loads(self.server.request("POST", "/callbacks", headers, body).body)
        for path in (told["token"], f"{told['id']}?account=42"):
            for name, expected in ((None, 401), ("43", 403), ("reads", 403)):
                self.assertEqual(self.asked("DELETE", f"/callbacks/{path}", name), expected, name)
        for name, expected in ((None, 401), ("43", 403), ("reads", 403), ("42", 200)):
            self.assertEqual(self.asked("GET", "/callbacks?account=42", name), expected, name)
        self.assertEqual(self.asked("DELETE", f"/callbacks/{told['token']}", "42"), 200)

    def test_the_url_itself_needs_no_credential(self) -> None:
        headers = [("Authorization", "Bearer 42")]
        body = b'{"account": "42"}'
        told = json.loads(self.server.request("POST", "/callbacks", headers, body).body)
        for name in (None, "43", "reads"):
            self.assertIn(self.asked("POST", f"/callbacks/{told['token']}", name, b"1"), (201, 202))
        self.assertEqual(self.asked("GET", f"/callbacks/{told['token']}", None), 200)
        self.assertEqual([event.data for event in self.events], [1, 1, 1])
