"""Cards of datasets, written with rows and read by the Hub's own parser."""

import json
import re

import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import DatasetCard

from cloud_hf.data.card import dataset_card


HOSTILE = ["``` <img src=x> ```", "`` a `` | b", "plain", "a\n\n# heading\n---\n", "````", "---\nlicense: mit\n---"]


def make(folder, rows, sources=(), settings=None, counts=None):
    rows.save_to_disk(folder)
    card = dataset_card("Pairs", folder, settings or {}, counts or {}, sources)
    card.save(folder / "README.md")
    return DatasetCard.load(folder / "README.md")


def pairs(number=3, **columns):
    return Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c", **columns}] * number)


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_in_a_card_cannot_leave_their_cell_or_block(text, tmp_path):
    card = make(tmp_path / "out", pairs(note=text), settings={"prompt": text})
    [line] = [line for line in card.text.splitlines() if line.startswith("| prompt | `")][-1:]
    fence = re.match(r"\| prompt \| (`+)", line)[1]
    inside = line[len(f"| prompt | {fence}") : -len(f"{fence} |")]
    assert fence not in inside and not re.search(r"(?<!\\)\|", inside)
    assert " ".join(text.split()) == inside.strip().replace("\\|", "|")
    opening = re.search(r"^(`{3,})json\n", card.text, re.MULTILINE)
    row, _, _ = card.text[opening.end() :].partition(f"\n{opening[1]}\n")
    assert json.loads(row)["note"] == text
    assert card.data.license == "unknown" and re.findall("^#+ ?heading", card.text, re.MULTILINE) == []


def test_sources_hand_on_licence_language_and_origin(tmp_path):
    first = tmp_path / "first"
    pairs().save_to_disk(first)
    (first / "README.md").write_text(
        "---\nlicense: mit\nlanguage: [en, de]\nsource_datasets: [org/rows]\n---\n# Rows\n"
    )
    second = make(tmp_path / "second", pairs(), [str(first)]).data
    third = make(tmp_path / "third", pairs(2000), [str(tmp_path / "second")])
    assert (second.license, second.language, second.source_datasets) == ("mit", ["en", "de"], ["org/rows"])
    assert third.data.to_dict() == {**second.to_dict(), "size_categories": ["1K<n<10K"]}
    assert third.data.task_categories == ["text-generation"] and "| `second` | `mit` |" in third.text
    assert str(tmp_path) not in third.text


@pytest.mark.parametrize("front", ["license: [1, {}]\nlanguage: 3\nsource_datasets: [<b>, 4]", "a: [", "- x"])
def test_damaged_cards_of_sources_hand_on_nothing(front, tmp_path):
    pairs().save_to_disk(tmp_path / "source")
    (tmp_path / "source/README.md").write_text(f"---\n{front}\n---\n# Rows\n")
    data = make(tmp_path / "out", pairs(), [str(tmp_path / "source")]).data
    assert (data.license, data.language, data.source_datasets) == ("unknown", None, None)


def test_several_licences_are_not_one(tmp_path):
    for name in ("mit", "apache-2.0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {name}\n---\n")
    card = make(tmp_path / "out", pairs(), [str(tmp_path / "mit"), str(tmp_path / "apache-2.0")])
    assert card.data.license == "other" and "| `mit` | `mit` |" in card.text and "| `apache-2.0` |" in card.text


def test_splits_and_columns_are_named(tmp_path):
    card = make(
        tmp_path / "out",
        DatasetDict({"train": pairs(), "test": pairs(1)}),
        counts={"rows": 4, "statistics": {"ties": 2}},
    )
    assert "3 rows (train), 1 rows (test), in the folder `out`" in card.text
    assert "| `chosen` | `string` | the better response |" in card.text and "## Statistics" in card.text


def test_a_dataset_without_rows_has_a_card(tmp_path):
    Dataset.from_dict({"prompt": []}).save_to_disk(tmp_path, num_shards=1)
    card = dataset_card("Prompts", tmp_path, {}, {}, [])
    assert "## A row" not in card.text and card.data.tags == ["cloud_hf"]
    assert card.data.size_categories == ["n<1K"]
