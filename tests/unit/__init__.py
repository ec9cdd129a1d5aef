"""Tests in memory: no network, no other process.  They are the fast tier."""
