"""The files of the admin page, which hold no secret."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from asyncplumber.http.responses import Response

_PAGE = "admin.html"
_TYPES: Mapping[str, bytes] = {
    _PAGE: b"text/html; charset=utf-8",
    "admin.css": b"text/css; charset=utf-8",
    "admin.js": b"text/javascript; charset=utf-8",
    "asyncplumber.js": b"text/javascript; charset=utf-8",
    "page.css": b"text/css; charset=utf-8",
    "favicon.svg": b"image/svg+xml",
}
_HEADERS = (
    (
        b"Content-Security-Policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Cache-Control", b"no-cache"),
)
# The page is at the folder itself.
_PATHS = frozenset(
    {b"/admin", *(b"/admin/" + name.removeprefix(_PAGE).encode() for name in _TYPES)}
)


def is_admin_file(path: bytes) -> bool:
    """Whether this is the path of the page or of a file of it."""
    return path in _PATHS


def admin_files() -> dict[str, Response]:
    """Return the responses by their names below ``/admin/``; the page has the empty name."""
    folder = files("asyncplumber.http").joinpath("static")
    return {
        name.removeprefix(_PAGE): Response(
            200, content_type, folder.joinpath(name).read_bytes(), _HEADERS
        )
        for name, content_type in _TYPES.items()
    }
