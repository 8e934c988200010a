"""Train a classic reward model, which scores responses directly: the same model class and trainer, but without critiques."""

from .train_cloud import ARGUMENTS, main


__all__ = ["ARGUMENTS", "FIXED_OPTIONS", "main"]

# Appended to the command line, so that they override other values and are parsed before the check that rejects critique-loss
# options
FIXED_OPTIONS = ("--critique", "False")
