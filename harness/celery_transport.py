"""
Celery messages as files in a folder, so that the tests need no broker.

Kombu's own transport for that lets a worker read a file that is still being written, and the worker
then ends.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

SCHEME = "whole-files"


class Channel(filesystem.Channel):  # type: ignore[misc]
    """A file has its name only when all of it is there."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        path = os.path.join(self.data_folder_out, f"{time.monotonic_ns()}_{uuid.uuid4()}.{queue}")
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            file.write(dumps(payload))
        os.rename(f"{path}.part", f"{path}.msg")


class Transport(filesystem.Transport):  # type: ignore[misc]
    """What a URL that begins with `SCHEME` means, once this module is imported."""

    Channel = Channel


TRANSPORT_ALIASES[SCHEME] = f"{__name__}:{Transport.__name__}"
