"""What makes a task framework announce its tasks."""
