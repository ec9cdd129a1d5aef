"""The HTTP server: requests are read, routed and answered."""
