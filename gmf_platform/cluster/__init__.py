"""Living with a cluster: signals, and what a job is told."""
