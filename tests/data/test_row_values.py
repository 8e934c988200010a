"""Values of one row."""

from cloud_hf.data.row_values import critiques_of, prompt_column, prompt_of


def test_critiques_in_a_csv_file():
    assert critiques_of({"chosen_feedback": '["A.", "B."]'}, "chosen_feedback") == ["A.", "B."]
    assert critiques_of({"chosen_feedback": "[8]"}, "chosen_feedback") == ["[8]"]
    assert critiques_of({"chosen_feedback": "[A] is wrong."}, "chosen_feedback") == ["[A] is wrong."]


def test_a_prompt_returns_to_the_type_of_its_column():
    messages = [{"role": "user", "content": "x"}]
    for prompt, tools in (
        ("x", None),
        ("x", ["t"]),
        (messages, ["t"]),
        ({"messages": messages, "tools": ["t"]}, None),
    ):
        row = {"prompt": prompt, "tools": tools}
        assert prompt_column(prompt_of(row), row) == prompt
