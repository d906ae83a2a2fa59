"""Many students on one teacher pass: what is tried, by whom it is run, and what came of it."""
