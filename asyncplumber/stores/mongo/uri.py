"""What a MongoDB URI says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

DATABASE = "asyncplumber"  # if the URI names none
MECHANISMS = ("SCRAM-SHA-1", "MONGODB-X509", "DEFAULT")  # what txmongo can do


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """
    A parsed MongoDB URI.  Its text never contains the password.

    Attributes:
        nodes: Host and port of each server.
        database: The database to use.
        user: ``""`` if no login is needed.
        password: ``""`` if no login is needed.
        source: The database that knows the user.
        options: All others, with lower-case names.
    """

    nodes: list[tuple[str, int]]
    database: str
    user: str
    password: str
    source: str
    options: dict[str, Any]

    def __repr__(self) -> str:
        nodes = ",".join(f"{host}:{port}" for host, port in self.nodes)
        return f"mongodb://{nodes}/{self.database}"


def parsed(uri: str) -> Address:
    """
    Parse `uri`.  For ``mongodb+srv`` this asks the DNS, and blocks.

    Raises:
        ValueError: `uri` cannot be used.  The message is a sentence for the user.
    """
    try:
        parts = parse_uri(uri)
    except (PyMongoError, ValueError) as error:
        raise ValueError(f"the MongoDB URI cannot be used: {error}") from error
    options = {name.lower(): value for name, value in parts["options"].items()}
    mechanism = options.get("authmechanism", "DEFAULT")
    if parts["username"] and mechanism not in MECHANISMS:
        raise ValueError(
            f"the MongoDB URI cannot be used: authMechanism={mechanism} is not supported;"
            " SCRAM-SHA-1 and MONGODB-X509 are"
        )
    return Address(
        nodes=parts["nodelist"],
        database=parts["database"] or DATABASE,
        user=parts["username"] or "",
        password=parts["password"] or "",
        source=options.get("authsource") or parts["database"] or "admin",
        options=options,
    )
