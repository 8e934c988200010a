"""Prevent untrusted folders from referring to files outside themselves. Does not import torch."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath


def is_inside(name: str) -> bool:
    """Return whether a file name in an index refers to a file inside the index's folder."""
    return bool(name) and "\\" not in name and not PurePosixPath(name).is_absolute() and ".." not in name.split("/")


def check_links(folder: str | Path, files: Iterable[str | Path]):
    """
    Raise `ValueError` if a file in a folder is a symbolic link that leads outside the folder. In the Hub's cache, files may be links to the
    blobs next to the snapshots.
    """
    root = Path(os.path.realpath(folder))
    allowed = [root, *(place.parents[1] / "blobs" for place in (root, *root.parents) if _is_snapshot(place))]
    for file in files:
        target = Path(os.path.realpath(file))
        if not any(target.is_relative_to(place) for place in allowed):
            raise ValueError(f"{file} is a link to {target}, outside {folder}. Replace it with a copy.")


def _is_snapshot(folder: Path) -> bool:
    return folder.parent.name == "snapshots" and folder.parents[1].name.startswith(("models--", "datasets--"))
