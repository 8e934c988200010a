"""Drop the null arguments that Arrow adds to tool calls."""

import logging
from typing import Any

from datasets import Dataset, Features, Json, LargeList, List


logger = logging.getLogger(__name__)


def without_added_arguments(rows: Dataset, name: str) -> Dataset:
    """
    Drop null arguments from tool calls whose arguments are Arrow structs, and log a warning. `name` is the start of the warning.

    A struct has the arguments of all rows, each null where a row lacks it, and the reward model would read them. TRL drops nulls for the
    same reason. Arguments stored as JSON text or in a `datasets.Json` column keep their nulls.
    """
    columns = [column for column, feature in rows.features.items() if _has_struct_arguments(feature)]
    if not columns:
        return rows
    logger.warning(
        "%s: the tool calls in %s store their arguments as Arrow structs, which add a null for each argument that another row has. Null "
        "arguments are dropped. To keep nulls, store the arguments as JSON text.",
        name,
        ", ".join(columns),
    )
    lists = {column for column in columns if isinstance(rows.features[column], List | LargeList)}
    features = Features(
        {**rows.features, **{column: List(Json()) if column in lists else Json() for column in columns}}
    )
    return rows.map(lambda row: {column: _drop(row[column]) for column in columns}, features=features)


def _has_struct_arguments(feature: Any) -> bool:
    if isinstance(feature, List | LargeList):
        return _has_struct_arguments(feature.feature)
    if not isinstance(feature, dict):
        return False
    return isinstance(feature.get("arguments"), dict) or any(map(_has_struct_arguments, feature.values()))


def _drop(value: Any, in_arguments: bool = False) -> Any:
    """Drop nulls from dictionaries inside `arguments`."""
    if isinstance(value, list):
        return [_drop(item, in_arguments) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _drop(item, in_arguments or key == "arguments")
        for key, item in value.items()
        if item is not None or not in_arguments
    }
