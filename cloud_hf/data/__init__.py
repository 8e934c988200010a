"""Load and check datasets, handle over-long rows, build new datasets, and generate the shell game."""
