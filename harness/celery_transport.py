"""Celery messages as files in a folder: the tests need no broker.

A worker with Kombu's own file transport may read a file that is still being written, and then ends.
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
    """Writes a file under another name and renames it when it is complete."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        path = os.path.join(self.data_folder_out, f"{time.monotonic_ns()}_{uuid.uuid4()}.{queue}")
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            file.write(dumps(payload))
        os.rename(f"{path}.part", f"{path}.msg")


class Transport(filesystem.Transport):  # type: ignore[misc]
    """The transport of URLs that begin with `SCHEME`, once this module is imported."""

    Channel = Channel


TRANSPORT_ALIASES[SCHEME] = f"{__name__}:{Transport.__name__}"
