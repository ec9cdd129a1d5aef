"""The doors to the other instances."""
