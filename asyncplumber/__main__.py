"""``python -m asyncplumber`` is the command ``asyncplumber``."""

from __future__ import annotations

import sys

from asyncplumber.command import main

if __name__ == "__main__":
    sys.exit(main())
