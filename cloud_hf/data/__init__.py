"""Datasets: columns and their checks, loading, over-long rows, the shell game."""
