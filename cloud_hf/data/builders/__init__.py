"""Data builders, one module each.

To add one, write a module in this folder with `ARGUMENTS`, a tuple of argument dataclasses, and `main`, which takes an
instance of each, and list it in `COMMANDS` of `cloud_hf/cli.py`.
"""
