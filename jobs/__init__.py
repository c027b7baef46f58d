"""Entry points: one job a file, run as `python -m jobs.NAME`."""
