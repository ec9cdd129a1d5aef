"""Who may do what: signatures, origins of web pages, names of this server."""
