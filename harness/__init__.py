"""Servers, clusters and clients for tests and benchmarks."""
