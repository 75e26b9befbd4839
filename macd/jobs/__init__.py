"""Training as a job that its host owns: check, sync, start, follow, collect; vanish any time."""
