"""Mirrors of the metrics: JSON lines always, TensorBoard and W&B on request."""
