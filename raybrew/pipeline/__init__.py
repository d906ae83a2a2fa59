"""From an experiment to what a training run is made of: tasks, teachers, rows, tokens, stores, objective."""
