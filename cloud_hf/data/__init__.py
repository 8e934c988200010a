"""Datasets: loading, column checks, over-long rows, the shell game."""
