"""Cascades of scored models, without scoring any."""

import pytest

from cloud_hf.evaluation.cascade_results import worth_of
from cloud_hf.evaluation.context_fitting import FittedRow


@pytest.mark.parametrize(
    ("kind", "columns", "worth"),
    [
        ("problems", {"correct": [0, 1, 0.5]}, [0.0, 1.0, 0.5]),
        ("benchmark", {"num_chosen": 2}, [1.0, 1.0, 0.0]),
        # Columns of the user, which mean something else
        ("pairs", {"correct": "yes", "num_chosen": 7}, [1.0, 0.0, 0.0]),
    ],
)
def test_worth_depends_on_the_kind_of_set(kind, columns, worth):
    assert worth_of(kind, FittedRow(0, columns, "Which?", ["a", "b", "c"], [])) == worth
