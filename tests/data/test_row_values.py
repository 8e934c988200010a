"""Values of one row."""

from cloud_hf.data.row_values import critiques_of


def test_critiques_in_a_csv_file():
    assert critiques_of({"chosen_feedback": '["A.", "B."]'}, "chosen_feedback") == ["A.", "B."]
    assert critiques_of({"chosen_feedback": "[A] is wrong."}, "chosen_feedback") == ["[A] is wrong."]
