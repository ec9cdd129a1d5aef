"""What runs on the other side: how a task sends its result."""
