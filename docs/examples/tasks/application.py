"""
A page that starts a task and shows how far it is.  Run it with ``twistd -ny application.py``.

``make_report`` is the task.  The plumber calls it when the first browser starts a report, and tells
all browsers of the account about it.
"""

import os
from pathlib import Path

from twisted.application import service, strports
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.web.server import Site
from twisted.web.static import File

from asyncplumber import Plumber, Run, steady

HERE = Path(__file__).parent


async def make_report(run: Run) -> dict[str, object]:
    """Make a report of so many pages; each takes half a second."""
    pages = min(int(run.data["pages"]), 100)
    for page in range(pages):
        await deferLater(reactor, 0.5)  # the work
        run.progress({"page": page + 1, "of": pages})
    return {"pages": pages, "words": 250 * pages}


steady(reactor)  # so that no timer stops when somebody sets the clock back
port = os.environ.get("PORT", "8000")
plumber = Plumber(
    os.environ.get("STORE", "sqlite:tasks.sqlite"),
    f"http://127.0.0.1:{port}/plumber",
    starter=make_report,
)

root = File(str(HERE / "page"))
root.putChild(b"plumber", plumber.resource())

application = service.Application("tasks")
plumber.setServiceParent(application)
strports.service(f"tcp:{port}:interface=127.0.0.1", Site(root)).setServiceParent(application)
