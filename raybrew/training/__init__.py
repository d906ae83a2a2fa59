"""The one training loop, its state, and the ways to launch it."""
