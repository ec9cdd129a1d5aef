"""What ``twistd asyncplumber`` starts: the service, its worker processes, its signals."""
