"""The history and the registry in MongoDB."""
