"""What a task is: its columns, encoding, model head, label loss and metrics. One file per task."""
