"""What a request may do: signatures, host names of this server, origins of web pages."""
