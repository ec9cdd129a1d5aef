"""One program for each task queue: it starts some tasks, and then is a worker that runs them."""
