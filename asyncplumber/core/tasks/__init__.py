"""The life of tasks: claim, report, hold, dispatch, sweep."""
