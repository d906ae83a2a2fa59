"""What is on disk about runs, trials and sweeps, read back as typed records."""
