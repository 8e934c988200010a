"""Help texts from docstrings, and lower bounds."""

import dataclasses
import math
from argparse import ArgumentParser
from dataclasses import dataclass, field

import pytest
from trl import TrlParser

from cloud_hf.argument_help import check_bounds, documented, parameter_texts


@documented
@dataclass
class Base:
    """
    What is common.

    Parameters:
        limit (`int`, *optional*):
            Read the first rows only.
        seed (`int`, *optional*, defaults to `0`):
            Seed, for 50 % of the rows. See [`~data.Rows`]
            and `limit`.

    Examples:

    ```python
    >>> Base(limit: 3)
    ```
    """

    limit: int | None = None
    seed: int = field(default=0, metadata={"choices": [0, 1]})


def help_of(cls):
    return {option.name: option.metadata.get("help") for option in dataclasses.fields(cls)}


def test_help_is_the_description_on_one_line():
    assert help_of(Base) == {
        "limit": "Read the first rows only.",
        "seed": "Seed, for 50 %% of the rows. See data.Rows and `limit`.",
    }


def test_other_metadata_stay_and_argparse_formats_the_help():
    [seed] = [option for option in dataclasses.fields(Base) if option.name == "seed"]
    assert seed.metadata["choices"] == [0, 1]
    parser = ArgumentParser()
    parser.add_argument("--seed", help=seed.metadata["help"])
    assert "50 % of the rows" in parser.format_help()


def test_headings_and_shared_entries_are_read():
    texts = parameter_texts(
        """
        Parameters:
            > Parameters that control the data

            one, two:
                Both.
            three (`list[str]`, *optional*, defaults to `("a", "b")`):
                First line:

                second line.
        Returns:
            four:
                Not a parameter.
        """
    )
    assert texts == {"one": "Both.", "two": "Both.", "three": "First line: second line."}
    assert parameter_texts("No section.") == {}


def test_a_subclass_describes_its_own_fields_and_inherits_the_others():
    @documented
    @dataclass
    class Derived(Base):
        """
        Parameters:
            rows (`int`):
                Rows.
            seed (`int`):
                Seed of the sampling.
        """

        rows: int = 1
        seed: int = 3

    assert help_of(Derived) == {"limit": help_of(Base)["limit"], "seed": "Seed of the sampling.", "rows": "Rows."}
    assert help_of(Base)["seed"].startswith("Seed, for")


@pytest.mark.parametrize(
    ("docstring", "says"),
    [
        ("Parameters:\n    other (`int`):\n        Text.", "does not describe `rows`"),
        ("Parameters:\n    rows (`int`):\n", "does not describe `rows`"),
        ("Nothing.", "does not describe `rows`"),
        (
            "Parameters:\n    rows:\n        Rows.\n    old:\n        Gone.",
            "describes `old`, which is not one of its fields",
        ),
    ],
)
def test_docstring_and_fields_must_agree(docstring, says):
    with pytest.raises(TypeError, match=f"The docstring of Arguments {says}"):
        documented(dataclasses.make_dataclass("Arguments", [("rows", int)], namespace={"__doc__": f"\n{docstring}"}))


def test_bounds_name_argument_and_value():
    TrlParser(Base)  # which changes the types of fields
    check_bounds(Base(limit=1, seed=0), limit=1, seed=0)
    check_bounds(Base(), limit=1)
    with pytest.raises(ValueError, match=r"^`seed` is -1; it must be at least 0\.$"):
        check_bounds(Base(seed=-1), limit=1, seed=0)
    with pytest.raises(ValueError, match=r"^`limit` is 0; it must be at least 1, or None\.$"):
        check_bounds(Base(limit=0), limit=1)
    with pytest.raises(ValueError, match="`seed` is nan"):
        check_bounds(Base(seed=math.nan), seed=0)
