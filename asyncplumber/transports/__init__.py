"""The ways in which a subscriber is sent its events: WebSocket, Server-Sent Events, long-poll."""
