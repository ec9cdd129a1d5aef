"""The subcommands of ``asyncplumber``: one module for each, whose `Command` has a `run`."""
