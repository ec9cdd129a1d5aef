"""Tests with real sockets, servers, browsers and processes."""
