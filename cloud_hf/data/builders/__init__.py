"""Data builders, one file each."""
