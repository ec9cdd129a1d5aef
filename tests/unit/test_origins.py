"""The origins of pages that may subscribe and post."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.origins import Origins, parse_origin


class OriginsTests(SynchronousTestCase):
    """Origins as a browser sends them, and as an operator writes them."""

    def allowed(self, pattern: str, *origins: str) -> list[bool]:
        """Return which of these origins the pattern allows."""
        found = Origins([pattern])
        return [found.allows({b"origin": origin.encode("latin-1")}) for origin in origins]

    def test_a_wildcard_stands_for_the_leftmost_labels(self) -> None:
        """One label or more."""
        good = (
            "https://a.example.com",
            "https://a.b.example.com",
            "https://xn--9ca.example.com",
            "https://a-1_.example.com",
        )
        self.assertEqual(self.allowed("https://*.example.com", *good), [True] * len(good))

    def test_a_wildcard_is_not_a_comparison_of_the_end(self) -> None:
        """The domain itself, similar ends, other schemes and ports, and invalid hosts fail."""
        bad = (
            "https://example.com",
            "https://evil-example.com",
            "https://evilexample.com",
            "https://.example.com",
            "https://a..example.com",
            "https://-.example.com",
            "http://a.example.com",
            "https://a.example.com:444",
            "https://a.example.com.evil.net",
            "https://a.example.com.",
            "https://evil.net/.example.com",
            "https://evil.net#.example.com",
            "https://evil.net?.example.com",
            "https://evil.net\\.example.com",
            "https://evil.net:1@.example.com",
            "https://evil.net@a.example.com",
            "https://a.exampleXcom",
            "https://*.example.com",
            "https://a.example.com\n",
            "xhttps://a.example.com",
            "https://A.example.com",
            "null",
            "",
        )
        self.assertEqual(self.allowed("https://*.example.com", *bad), [False] * len(bad))

    def test_a_wildcard_may_have_a_port(self) -> None:
        """The port is that of every host."""
        self.assertEqual(
            self.allowed(
                "http://*.localhost:8080",
                "http://a.localhost:8080",
                "http://a.localhost",
                "http://a.localhost:80801",
            ),
            [True, False, False],
        )

    def test_an_origin_is_written_as_browsers_send_it(self) -> None:
        """In lower case, and without the default port of the scheme."""
        for written, sent in (
            ("HTTPS://App.Example", "https://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("http://app.example:80", "http://app.example"),
            ("http://app.example:443", "http://app.example:443"),
            ("https://*.Example.com:443", "https://*.example.com"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ):
            self.assertEqual(parse_origin(written), sent)

    def test_a_pattern_that_matches_nothing_or_too_much_is_refused(self) -> None:
        """At the start, with a sentence."""
        for text in (
            "app.example",
            "https://",
            "https://app.example/",
            "https://app.example/page",
            "https://app.example?x",
            "https://app.example#x",
            "https://user@app.example",
            "https://app.example:x",
            "https://app.example:99999",
            "ftp://app.example",
            "null",
            "https://*",
            "https://*.com",
            "https://*.*.example.com",
            "https://a.*.example.com",
            "https://*a.example.com",
            "https://*.1.2.3.4",
            "https://ä.example",
            "https://a b.example",
        ):
            with self.assertRaises(ValueError, msg=text):
                parse_origin(text)
