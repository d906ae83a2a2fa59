"""Sources, parsed rows, encoded rows in memory-mapped Arrow, batches in one seeded order."""
