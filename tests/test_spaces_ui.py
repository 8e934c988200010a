import json
import re

import pytest
from payloads import PAYLOADS


pytest.importorskip("gradio", reason="Gradio is not installed.")

import gradio as gr

from cloud_hf.spaces_ui import as_text, is_out_of_memory, read_table, read_text, user_errors


PAIRS = {"chosen": ["1.0", "2.0"], "rejected": ["0.5", "3.0"]}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(delimiter, newline):
    lines = [["chosen", "rejected"], ["1.0", "0.5"], ["2.0", "3.0"]]
    text = newline.join(delimiter.join(line) for line in lines)
    assert read_table(f"\ufeff\n{text}{newline}{newline}", ["chosen", "rejected"], ["subset"]) == PAIRS


def test_csv_keeps_text_as_it_is():
    text = 'prompt,prediction\n"a, ""b""\nc",  x \n1e5,\nNA,\t'
    assert read_table(text, ["prompt", "prediction"]) == {
        "prompt": ['a, "b"\nc', "1e5", "NA"],
        "prediction": ["  x ", "", "\t"],
    }


def test_csv_of_a_spreadsheet():
    long = "x" * 200_000
    assert read_table(f"chosen,rejected,,\n{long},b,,\n", ["chosen", "rejected"]) == {
        "chosen": [long],
        "rejected": ["b"],
    }


def test_json_in_three_shapes():
    rows = [{"chosen": 1, "rejected": 0, "subset": "a"}, {"chosen": 2, "rejected": 3, "subset": "b", "other": None}]
    wanted = {"chosen": [1, 2], "rejected": [0, 3], "subset": ["a", "b"]}
    columns = {"chosens": [1, 2], "rejected": [0, 3], "subsets": ["a", "b"]}
    for text in ("\n\n".join(map(json.dumps, rows)), json.dumps(rows, indent=1), json.dumps(columns, indent=1)):
        assert read_table(text, ["chosen", "rejected"], ["subset"]) == wanted


def test_one_row_is_no_table_by_columns():
    row = {"prompt": [{"role": "user", "content": "Hi"}], "prediction": "Hello\u2028you"}
    wanted = {name: [value] for name, value in row.items()}
    assert read_table(json.dumps(row, ensure_ascii=False), ["prompt", "prediction"]) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "There are no rows"),
        (" \n\t\n", "There are no rows"),
        ("chosen,rejected", "no rows below the first line"),
        ("1.0,0.5\n2.0,3.0", "There is no column `chosen`, only `1.0`, `0.5`"),
        ("chosen,rejected\n1,2\n3", r"Row 1 \(line 3\): 1 fields"),
        ("chosen,chosen\n1,2", "names a column twice"),
        ('chosen,rejected\n"1,2\n3,4', "Line 3 is not CSV.*quote"),
        (
            '{"chosen": 1, "rejected": 2}\n{"chosen": 1, "chosens": 2, "rejected": 2}',
            "Row 1: both `chosen` and `chosens`",
        ),
        ("chosen,rejected,subset,subsets\n1,2,a,b", "Row 0: both `subset` and `subsets` are given; keep one"),
        ("x" * 1_000_000, "no rows below the first line"),
        (f'chosen,rejected\n"{"x" * 1_000_000},1', "Line 2 is not CSV.*quote"),
        ("[]", "the list is empty"),
        ("[1, 2]", "Row 0 is 1; give an object"),
        ('{"chosen": 1}\n3', "Row 1 is 3; give an object"),
        ('{"chosen": 1}\n{"chosen": }', "Line 2 is not JSON: Expecting value at character 12"),
        ('[{"chosen": 1}', "This is not JSON"),
        ('{"chosen": 1, "rejected": 2}\n{"chosen": 1}', "Row 1: `rejected` is missing"),
        ('{"chosen": 1, "rejected": 2, "subset": "a"}\n{"chosen": 1, "rejected": 2}', "Row 1: `subset` is missing"),
        ('{"chosen": [1, 2], "rejected": [1]}', "differ in length .2 of `chosen`, 1 of `rejected`"),
        ('{"chosen": [], "rejected": []}', "the list is empty"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_errors_say_where(text, message):
    with pytest.raises(ValueError, match=message):
        read_table(text, ["chosen", "rejected"], ["subset"])


def test_uploads(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes("chosen,rejected\n1.0,0.5\n2.0,3.0".encode("utf-8-sig"))
    assert read_table(read_text(path), ["chosen", "rejected"]) == PAIRS
    path.write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"pairs\.csv is not UTF-8 text"):
        read_text(path)


# ------------------------------------------------------------------------------------------------- text and errors


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_sign_of_a_template_or_a_tag_is_left(payload):
    assert not re.search(r"[<>\"'{}$`\\\0]", as_text(payload))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("Row 1: <b>"), "Row 1: &lt;b&gt;"),
        (KeyError("x"), None),
        (MemoryError(), "Out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "Out of memory"),
    ],
)
def test_errors_become_sentences(error, message):
    expected = pytest.raises(gr.Error, match=message) if message else pytest.raises(type(error))
    with expected, user_errors():
        raise error
    assert is_out_of_memory(error) == (message == "Out of memory")


def test_errors_of_other_kinds_are_named():
    with pytest.raises(gr.Error, match="the server is down"), user_errors(OSError):
        raise OSError("the server is down")
