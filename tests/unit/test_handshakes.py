"""What services ask a callback URL before they use it."""

from __future__ import annotations

import hmac
import json
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.http.callbacks import CONFIRM
from asyncplumber.http.handshakes import LONGEST_BODY, LONGEST_ECHO
from asyncplumber.testing import NOW, ClientResponse
from harness.mounted import MountedServer
from tests import signing
from tests.callback_client import CallbackCase

TEXT = b"text/plain; charset=utf-8"
BAD = ("<script>", "a b", 'a"b', "a\r\nX: y", "é", "", "a:b", "a&b", "x" * (LONGEST_ECHO + 1))
GRAPH = "Validation: Testing client application reachability for subscription Request-Id: 522a8e7e"


class HandshakeTests(CallbackCase, SynchronousTestCase):
    """Each service is answered as it wants, and no event is made."""

    def setUp(self) -> None:
        super().setUp()
        self.url = self.path()

    def tearDown(self) -> None:
        """No handshake has made an event."""
        self.assertEqual(self.types, [])

    def echoed(self, reply: ClientResponse, text: str) -> None:
        """Fail unless this text is the answer, and can be no page."""
        self.assertEqual((reply.status, reply.body), (200, text.encode()))
        self.assertEqual(reply.headers[b"content-type"], TEXT)
        self.assertEqual(reply.headers[b"x-content-type-options"], b"nosniff")

    def post_json(self, url: str, body: object, *headers: tuple[str, str]) -> ClientResponse:
        """POST this as JSON."""
        kind = ("Content-Type", "application/json")
        return self.server.request("POST", url, [kind, *headers], json.dumps(body).encode())

    def test_cloudevents(self) -> None:
        asked = [
            ("WebHook-Request-Origin", "events.example.com"),
            ("WebHook-Request-Rate", "120"),
            ("WebHook-Request-Callback", "https://example.com/confirm?id=1"),
        ]
        reply = self.server.request("OPTIONS", self.url, asked)
        self.assertEqual(reply.status, 200)
        self.assertEqual(reply.headers[b"webhook-allowed-origin"], b"events.example.com")
        self.assertEqual(reply.headers[b"webhook-allowed-rate"], b"60")
        for bad in ("<script>", "a b", "x" * (LONGEST_ECHO + 1)):
            asked = [("WebHook-Request-Origin", bad)]
            self.assertEqual(self.server.request("OPTIONS", self.url, asked).status, 400, bad)

    def test_options_without_a_question(self) -> None:
        reply = self.server.request("OPTIONS", self.url)
        self.assertEqual((reply.status, reply.headers[b"allow"]), (200, b"GET, OPTIONS, POST"))
        self.assertNotIn(b"webhook-allowed-origin", reply.headers)

    def test_slack(self) -> None:
        body = {"type": "url_verification", "token": "t", "challenge": "3eZbrw1aBm2rZgRN"}
        self.echoed(self.post_json(self.url, body), "3eZbrw1aBm2rZgRN")
        for bad in BAD:
            reply = self.post_json(self.url, {"type": "url_verification", "challenge": bad})
            self.assertEqual(reply.status, 400, bad)

    def test_slack_signs_its_question(self) -> None:
        secret = "s" * 32
        url = self.path(verify={"scheme": "slack", "secret": secret})
        body = {"type": "url_verification", "challenge": "abc"}
        signed = signing.slack(secret, NOW, json.dumps(body).encode())
        self.echoed(self.post_json(url, body, *signed), "abc")
        self.assertEqual(self.post_json(url, body).status, 401)

    def test_meta(self) -> None:
        token = self.url.rpartition("/")[2]
        query = "?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token="
        self.echoed(self.get(f"{self.url}{query}{token}"), "1158201444")
        for wrong in ("", "other", quote("é")):
            self.assertEqual(self.get(f"{self.url}{query}{wrong}").status, 403)
        bad = f"?hub.challenge=%3Cscript%3E&hub.verify_token={token}"
        self.assertEqual(self.get(self.url + bad).status, 400)

    def test_meta_may_know_the_secret_in_place_of_the_token(self) -> None:
        url = self.path(verify={"scheme": "github", "secret": "s" * 32})
        query = f"?hub.mode=subscribe&hub.challenge=1&hub.verify_token={'s' * 32}"
        self.echoed(self.get(url + query), "1")

    def test_microsoft_graph(self) -> None:
        for token in ("opaque-token", GRAPH):
            reply = self.server.request("POST", f"{self.url}?validationToken={quote(token)}")
            self.echoed(reply, token)
        for bad in (b for b in BAD if b not in ("a b", "a:b")):
            reply = self.server.request("POST", f"{self.url}?validationToken={quote(bad)}")
            self.assertEqual(reply.status, 400, bad)

    def test_event_grid(self) -> None:
        event = {
            "id": "2d1781af",
            "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent",
            "data": {"validationCode": "512d38b6-c7b8", "validationUrl": "https://x.example"},
        }
        reply = self.post_json(self.url, [event], ("aeg-event-type", "SubscriptionValidation"))
        self.assertEqual(json.loads(reply.body), {"validationResponse": "512d38b6-c7b8"})
        event["data"] = {"validationCode": "<b>"}
        self.assertEqual(self.post_json(self.url, [event]).status, 400)

    def test_zoom(self) -> None:
        """Its question has no signature, and is answered all the same."""
        secret = "z" * 22
        url = self.path(verify={"scheme": "zoom", "secret": secret})
        body = {
            "event": "endpoint.url_validation",
            "payload": {"plainToken": "qgg8vlvZRS6UYooatFL8Aw"},
        }
        reply = self.post_json(url, body)
        digest = hmac.new(secret.encode(), b"qgg8vlvZRS6UYooatFL8Aw", "sha256").hexdigest()
        self.assertEqual(
            json.loads(reply.body),
            {"plainToken": "qgg8vlvZRS6UYooatFL8Aw", "encryptedToken": digest},
        )

    def test_zoom_signs_nothing_that_is_a_request(self) -> None:
        """Whoever knows the URL could have ``v0:{timestamp}:{body}`` signed."""
        url = self.path(verify={"scheme": "zoom", "secret": "z" * 22})
        for plain in (f"v0:{int(NOW)}:" + "{}", "v0:1", *BAD):
            body = {"event": "endpoint.url_validation", "payload": {"plainToken": plain}}
            self.assertEqual(self.post_json(url, body).status, 400, plain)

    def test_dropbox_and_others(self) -> None:
        for name in ("challenge", "echo"):
            self.echoed(
                self.get(f"{self.url}?{name}=a.B-c_~+/=9".replace("+", "%2B")), "a.B-c_~+/=9"
            )
            for bad in BAD:
                self.assertEqual(self.get(f"{self.url}?{name}={quote(bad)}").status, 400, bad)

    def test_the_longest_challenge(self) -> None:
        self.echoed(self.get(f"{self.url}?challenge={'x' * LONGEST_ECHO}"), "x" * LONGEST_ECHO)

    def test_okta(self) -> None:
        reply = self.get(self.url, ("x-okta-verification-challenge", "dfsdf.-_"))
        self.assertEqual(json.loads(reply.body), {"verification": "dfsdf.-_"})
        reply = self.get(self.url, ("x-okta-verification-challenge", '"<'))
        self.assertEqual(reply.status, 400)

    def test_a_plain_get_says_that_somebody_is_here(self) -> None:
        for method in ("GET", "HEAD"):
            self.assertEqual(self.server.request(method, self.url).status, 200)
        self.assertEqual(json.loads(self.get(self.url).body)["status"], "ok")

    def test_there_are_none_at_the_webhook(self) -> None:
        for method in ("GET", "OPTIONS"):
            reply = self.server.request(
                method, "/hooks/43?challenge=x", [("WebHook-Request-Origin", "e.example")]
            )
            self.assertEqual(reply.status, 405)


class MountedHandshakeTests(HandshakeTests):
    """The same in a site of another application."""

    make_server = MountedServer


class LongBodyTests(CallbackCase, SynchronousTestCase):
    """No service asks with a long body."""

    body_limit = 2 * LONGEST_BODY

    def test_what_is_longer_is_an_event(self) -> None:
        body = b'{"type": "url_verification", "challenge": "abc"}'
        path = self.path()
        reply = self.server.request("POST", path, body=body.ljust(LONGEST_BODY))
        self.assertEqual((reply.status, reply.body, self.types), (200, b"abc", []))
        self.assertEqual(self.post(path, body.ljust(LONGEST_BODY + 1))[0], 201)
        self.assertEqual(self.types, ["result"])


class ConfirmationTests(CallbackCase, SynchronousTestCase):
    """Amazon SNS wants a URL to be visited; a person does that."""

    URL = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription"

    def confirm(self, body: object) -> int:
        """POST as SNS does, which calls its JSON a text."""
        status, _ = self.post(
            self.path(),
            json.dumps(body).encode(),
            ("Content-Type", "text/plain; charset=UTF-8"),
            ("x-amz-sns-message-type", "SubscriptionConfirmation"),
        )
        return status

    def test_people_are_asked(self) -> None:
        message = {"TopicArn": "arn:aws:sns:eu-west-1:1:t", "SubscribeURL": self.URL}
        self.assertEqual(self.confirm({"Type": "SubscriptionConfirmation", "X": 1, **message}), 201)
        [event] = self.events
        self.assertEqual((event.type, event.data), (CONFIRM, message))

    def test_only_a_url_can_be_visited(self) -> None:
        for body in ({}, [], {"SubscribeURL": "javascript:alert(1)"}, {"SubscribeURL": 1}):
            self.assertEqual(self.confirm(body), 400)
        self.assertEqual(self.events, [])
