"""Train a classic reward model, which scores the response directly: same model class and trainer, no critique."""

from .train_cloud import ARGUMENTS, main


__all__ = ["ARGUMENTS", "FIXED_OPTIONS", "main"]

# Parsed last, so that they win, and before the arguments are checked, so that options of the critique loss are refused
FIXED_OPTIONS = ("--critique", "False")
