"""What an event goes through between its POST and its subscribers.  No sockets, no store."""
