from twisted.application.service import ServiceMaker

asyncplumber = ServiceMaker(
    "asyncplumber",
    "asyncplumber.tap",
    "Push the results of background tasks to the browsers that wait for them.",
    "asyncplumber",
)
