"""Signs requests as the senders of webhooks do, without the code that is tested."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Lines = list[tuple[str, str]]

# Published examples: secret, time and body of each, and the signature that belongs to them.
STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STANDARD_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
STANDARD_TIME = 1614265330
STANDARD_BODY = b'{"test": 2432232314}'
STANDARD_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

GITHUB_SECRET = "It's a Secret to Everybody"
GITHUB_BODY = b"Hello, World!"
GITHUB_SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

STRIPE_SECRET = "whsec_test_secret"
STRIPE_TIME = 1614265330
STRIPE_BODY = b'{"test": 2432232314}'
STRIPE_SIGNATURE = "10c96c6fd3f320fcfc264cdc4f476c15060ede8e8a08404cea2ddf3b72544a9c"

SLACK_SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
SLACK_TIME = 1531420618
SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow"
    b"&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner"
    b"&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands"
    b"%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
SLACK_SIGNATURE = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"


def _hex(secret: str, content: bytes) -> str:
    return hmac.new(secret.encode(), content, "sha256").hexdigest()


def standard(secret: str, id: str, time: float, body: bytes, family: str = "webhook") -> Lines:
    """Sign as Standard Webhooks 1.0.0 says; the secret begins with ``whsec_``."""
    key = b64decode(secret.removeprefix("whsec_"))
    content = f"{id}.{int(time)}.".encode() + body
    signature = b64encode(hmac.new(key, content, "sha256").digest()).decode()
    return [
        (f"{family}-id", id),
        (f"{family}-timestamp", str(int(time))),
        (f"{family}-signature", f"v1,{signature}"),
    ]


def standard_public(key: Ed25519PrivateKey, id: str, time: float, body: bytes) -> Lines:
    """Sign in the asymmetric way of Standard Webhooks."""
    signature = b64encode(key.sign(f"{id}.{int(time)}.".encode() + body)).decode()
    return [
        ("webhook-id", id),
        ("webhook-timestamp", str(int(time))),
        ("webhook-signature", f"v1a,{signature}"),
    ]


def public_key(key: Ed25519PrivateKey) -> str:
    """Return the public key as a sender of Standard Webhooks shows it."""
    return "whpk_" + b64encode(key.public_key().public_bytes_raw()).decode()


def github(secret: str, body: bytes, delivery: str = "72d3162e", event: str = "push") -> Lines:
    """Sign as GitHub does."""
    return [
        ("X-GitHub-Delivery", delivery),
        ("X-GitHub-Event", event),
        ("X-Hub-Signature-256", "sha256=" + _hex(secret, body)),
    ]


def stripe(secret: str, time: float, body: bytes) -> Lines:
    """Sign as Stripe does."""
    signature = _hex(secret, f"{int(time)}.".encode() + body)
    return [("Stripe-Signature", f"t={int(time)},v1={signature},v0={'0' * 64}")]


def slack(secret: str, time: float, body: bytes) -> Lines:
    """Sign as Slack does."""
    return [
        ("X-Slack-Request-Timestamp", str(int(time))),
        ("X-Slack-Signature", "v0=" + _hex(secret, f"v0:{int(time)}:".encode() + body)),
    ]


def shopify(secret: str, body: bytes, id: str = "b54557e4", topic: str = "orders/create") -> Lines:
    """Sign as Shopify does."""
    digest = hmac.new(secret.encode(), body, "sha256").digest()
    return [
        ("X-Shopify-Hmac-Sha256", b64encode(digest).decode()),
        ("X-Shopify-Webhook-Id", id),
        ("X-Shopify-Topic", topic),
    ]


def paddle(secret: str, time: float, body: bytes) -> Lines:
    """Sign as Paddle does."""
    return [
        ("Paddle-Signature", f"ts={int(time)};h1={_hex(secret, f'{int(time)}:'.encode() + body)}")
    ]


def gitlab(secret: str, id: str, event: str = "Push Hook") -> Lines:
    """Show GitLab's secret token, which signs nothing."""
    return [("X-Gitlab-Token", secret), ("Idempotency-Key", id), ("X-Gitlab-Event", event)]


def twilio(secret: str, content: bytes) -> Lines:
    """Sign as Twilio does; the content is the URL, and names and values of the form by name."""
    digest = hmac.new(secret.encode(), content, "sha1").digest()
    return [("X-Twilio-Signature", b64encode(digest).decode())]


def zoom(secret: str, time: float, body: bytes) -> Lines:
    """Sign as Zoom does."""
    digest = _hex(secret, f"v0:{int(time)}:".encode() + body)
    return [("x-zm-request-timestamp", str(int(time))), ("x-zm-signature", f"v0={digest}")]
