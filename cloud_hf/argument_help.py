"""Helpers for argument dataclasses: take help texts from the docstring, and check lower bounds."""

import dataclasses
import inspect
import re
import sys
import typing
from types import MappingProxyType


T = typing.TypeVar("T")

# "name (`type`, *optional*, defaults to `x`):" or "one, two:", alone on its line
_ENTRY = re.compile(r"(\w+(?:, \w+)*)(?: \(.+\))?:")


def documented(cls: type[T]) -> type[T]:
    """
    Use the `Parameters` section of a dataclass's docstring as the help texts of its command-line options.

    Inherited fields keep the help of the class that defines them, unless the docstring describes them again.

    Raises:
        `TypeError`: If a field that the class defines has no entry, or an entry does not name a field.

    Examples:

    ```python
    >>> @documented
    ... @dataclass
    ... class SplitArguments:
    ...     '''
    ...     Parameters:
    ...         split (`str`, *optional*, defaults to `"train"`):
    ...             Split to read.
    ...     '''
    ...
    ...     split: str = "train"
    >>> fields(SplitArguments)[0].metadata["help"]
    'Split to read.'
    ```
    """
    if sys.flags.optimize >= 2:  # python -OO strips docstrings
        return cls
    entries = parameter_texts(cls.__doc__ or "")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    own = [name for name in inspect.get_annotations(cls) if name in fields]
    if missing := [name for name in own if not entries.get(name)]:
        raise TypeError(f"The docstring of {cls.__name__} does not describe `{missing[0]}`.")
    if unknown := [name for name in entries if name not in fields]:
        raise TypeError(f"The docstring of {cls.__name__} describes `{unknown[0]}`, which is not one of its fields.")
    for name in own:
        # argparse formats help texts with %
        text = entries[name].replace("%", "%%")
        fields[name].metadata = MappingProxyType({**fields[name].metadata, "help": text})
    return cls


def parameter_texts(docstring: str) -> dict[str, str]:
    """Parse the `Parameters` section of a docstring. Return each parameter's description as one line without link markup."""
    lines = inspect.cleandoc(docstring).splitlines()
    texts: dict[str, list[str]] = {}
    names: list[str] = []
    for line in lines[lines.index("Parameters:") + 1 :] if "Parameters:" in lines else ():
        indent = len(line) - len(line.lstrip())
        if line and not indent:  # the next section
            break
        if indent == 4:
            entry = _ENTRY.fullmatch(line.strip())
            names = entry[1].split(", ") if entry else []  # a line that starts with > is a heading
            texts |= {name: [] for name in names}
        elif line:
            for name in names:
                texts[name].append(line.strip())
    return {name: re.sub(r"\[`~?([^`]+)`\]", r"\1", " ".join(text)) for name, text in texts.items()}


# Data types in which transformers and vLLM can load weights; the last three are aliases
_DATA_TYPES = ("auto", "float32", "bfloat16", "float16", "float64", "float", "double", "half")


def check_data_type(dtype: str | None):
    """Raise `ValueError` unless weights can be loaded in this data type. `None` passes."""
    if dtype not in (None, *_DATA_TYPES):
        raise ValueError(
            f"`dtype` is {dtype!r}; use {', '.join(_DATA_TYPES[:3])} or {_DATA_TYPES[3]}. For quantised "
            "checkpoints (FP8, AWQ, GPTQ), use auto, which keeps their weights quantised."
        )


# Options by which vLLM's engine alone would load other files than those that encode its prompts and identify the model in reports
_OTHER_FILES = ("revision", "tokenizer", "tokenizer_revision", "hf_config_path", "generation_config")


def check_vllm_files(options: dict[str, typing.Any]):
    """Raise `ValueError` if an option of vLLM's engine names files other than the model's."""
    for name in _OTHER_FILES:
        if (value := options.get(name)) not in (None, "auto"):
            raise ValueError(
                f"vLLM's option `{name}` is {value!r}, but its prompts are encoded with the model's own files. Pass a folder with all files as "
                "the model (for a revision: `hf download MODEL --revision REVISION --local-dir FOLDER`)."
            )


def check_bounds(arguments: typing.Any, **least: float):
    """
    Check that a dataclass's values are not below their lower bounds. `None` passes.

    Raises:
        `ValueError`: If a value is below its bound. The message names the first such value.

    Examples:

    ```python
    >>> check_bounds(self, batch_size=1, seed=0)
    ```
    """
    for name, bound in least.items():
        value = getattr(arguments, name)
        if value is not None and not value >= bound:
            or_none = ", or None" if type(None) in typing.get_args(_annotation(type(arguments), name)) else ""
            raise ValueError(f"`{name}` is {value}; it must be at least {bound}{or_none}.")


def _annotation(cls: type, name: str) -> typing.Any:
    # Read the annotation instead of `field.type`, from which transformers' parser removes None
    return next(own[name] for own in map(inspect.get_annotations, cls.__mro__) if name in own)
