"""Train a classic reward model, which scores the response directly: same model class and trainer, without critiques."""

from .train_cloud import ARGUMENTS, main


__all__ = ["ARGUMENTS", "FIXED_OPTIONS", "main"]

# Appended to the command line: they override other values, and are parsed before the check that refuses options of the
# critique loss
FIXED_OPTIONS = ("--critique", "False")
