"""The call-out: the application is asked about a request."""
