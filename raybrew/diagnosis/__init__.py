"""What is wrong, or may go wrong, with a machine or a cluster, and what helps."""
