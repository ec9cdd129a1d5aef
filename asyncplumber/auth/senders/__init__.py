"""Senders that sign the bodies of their POSTs."""
