"""A training run: its program, the job that trains, its scores, and the folder that is left of it."""
