"""Users' rows in every form, from `../shared/cases`; tests that need them skip where the folder is absent."""

from pathlib import Path

import pytest


CASES = Path(__file__).parents[3] / "shared" / "cases"


def case(name: str) -> str:
    if not CASES.is_dir():
        pytest.skip("needs the rows of ../shared/cases, which are not part of the product")
    return str(CASES / name)
