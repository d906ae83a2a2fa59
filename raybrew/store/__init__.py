"""The teacher store: signals, fingerprints, shards, reading, and capture."""
