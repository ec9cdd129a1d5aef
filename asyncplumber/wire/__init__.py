"""What is on the wire, as pure functions and values: no sockets, no clock, no store."""
