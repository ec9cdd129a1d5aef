"""The lowest versions that ``setup.cfg`` allows, as constraints for pip.

``python harness/lowest.py > lowest.txt && pip install -c lowest.txt -e '.[test]'``
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"
TESTED = ("celery", "test-fast", "test")  # the extras whose bounds are tested as well
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?\s*>=\s*([\w.]+)")


def lowest(text: str) -> Iterator[str]:
    """Yield ``name==version`` for each requirement with a lower bound.

    Raises:
        ValueError: a requirement has neither a lower bound nor an exact version.
    """
    config = ConfigParser()
    config.read_string(text)
    wanted = [config["options"]["install_requires"]]
    wanted += [config["options.extras_require"][extra] for extra in TESTED]
    for line in dict.fromkeys("\n".join(wanted).split("\n")):
        if not line.strip() or "==" in line or line.startswith("asyncplumber["):
            continue
        found = _REQUIREMENT.match(line.strip())
        if found is None:
            raise ValueError(f"{line!r} has no lower bound")
        yield f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    print("\n".join(lowest(SETUP.read_text(encoding="utf-8"))))
