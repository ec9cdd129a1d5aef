"""The history and the registry in one SQLite file."""
