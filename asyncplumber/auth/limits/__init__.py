"""What strangers may do at most."""
