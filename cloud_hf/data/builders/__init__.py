"""Data builders, one module each."""

# To add a builder, write one module in this folder and add its name here. The module holds `ARGUMENTS`, a tuple of
# argument dataclasses, and `main`, which takes one instance of each.
BUILDERS = ("prompts", "preferences", "oracle", "self_critiques", "ray", "published")
