"""asyncplumber: the pipe from background tasks to the browsers that wait for them."""
