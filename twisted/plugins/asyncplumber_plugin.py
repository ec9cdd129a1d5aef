"""
The plugin of ``twistd asyncplumber``.

It imports nothing of the package: an error there would show in every command of twistd.
"""

from twisted.application.service import ServiceMaker

asyncplumber = ServiceMaker(
    "asyncplumber",
    "asyncplumber.tap",
    "Push the results of background tasks to the browsers that wait for them.",
    "asyncplumber",
)
