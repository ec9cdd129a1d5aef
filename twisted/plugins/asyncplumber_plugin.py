"""The signpost: twistd looks here, and must be able to although nothing of ours can be imported."""

from twisted.application.service import ServiceMaker

asyncplumber = ServiceMaker(
    "asyncplumber",
    "asyncplumber.tap",
    "Push the results of background tasks to the browsers that wait for them.",
    "asyncplumber",
)
