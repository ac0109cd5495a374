"""Running a plan: the executor, what it falls back to, what it can print."""
