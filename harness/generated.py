"""Values that Hypothesis generates for tests of more than one module."""

from __future__ import annotations

from hypothesis import strategies as st


def plain_text(longest: int = 20) -> st.SearchStrategy[str]:
    """
    Return a strategy for the names that `asyncplumber.event.is_plain` accepts.

    Each character is chosen from those that are allowed.  A filter would throw whole names away,
    and Hypothesis fails a test whose inputs are mostly thrown away.
    """
    allowed = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])
    return st.text(allowed, min_size=1, max_size=longest)
