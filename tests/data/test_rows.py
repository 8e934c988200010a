import gzip
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from cloud_hf.data.rows import hash_of_rows, load_rows


ROWS = [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2


def test_every_kind_of_name_gives_the_same_rows(tmp_path):
    text = "\n".join(map(json.dumps, ROWS))
    (tmp_path / "rows.jsonl").write_text(text)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write(text)
    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(test=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet", "one", "splits"):
        assert list(load_rows(str(tmp_path / name), "test")) == ROWS, name


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_rows(str(tmp_path / "absent.jsonl"))
    DatasetDict(test=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="no split 'train'; it has test"):
        load_rows(str(tmp_path / "splits"), "train")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match="has no splits"):
        load_rows(str(tmp_path / "one"), "test", needs_split=True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is a folder, but contains no data files"):
        load_rows(str(tmp_path / "folder"))
    Dataset.from_dict({"prompt": []}).save_to_disk(tmp_path / "no-rows")
    with pytest.raises(ValueError, match="no-rows contains no rows"):
        load_rows(str(tmp_path / "no-rows"))
    for name, text in (("empty.jsonl", ""), ("blank.jsonl", "\n\n"), ("empty.json", "[]"), ("header.csv", "prompt\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} cannot be read as (json|csv): it contains no rows"):
            load_rows(str(tmp_path / name))
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a": ')
    with pytest.raises(ValueError, match=r"broken.jsonl cannot be read as json: \w"):
        load_rows(str(tmp_path / "broken.jsonl"))
    for name, encoding in (("wide.jsonl", "utf-16"), ("wide.csv", "utf-16"), ("latin.csv", "latin-1")):
        (tmp_path / name).write_text("prompt\né\n", encoding=encoding)
        with pytest.raises(ValueError, match=r"it is not UTF-8.* Save the file as UTF-8"):
            load_rows(str(tmp_path / name))
    halves = r'{"a": "\ud83d\ude00 \\ud800"} {"a": "x \ud800"} {"a": "\udc00 \\\ud83d\ude00"} {"a": "\ud83d\n"}'
    (tmp_path / "halves.jsonl").write_text(halves.replace("} ", "}\n"))
    with pytest.raises(
        ValueError, match=r"json: line 2 of .*, line 3 of .*, line 4 .* lone surrogate .*lines: 3\. Repair"
    ):
        load_rows(str(tmp_path / "halves.jsonl"))
    (tmp_path / "rows.xlsx").write_text("prompt")
    with pytest.raises(ValueError, match="dataset files must end in"):
        load_rows(str(tmp_path / "rows.xlsx"))
    with pytest.raises(ValueError, match="no such file"):
        load_rows(str(tmp_path / "*.nothing"))
    (tmp_path / "rows.csv").write_text("prompt")
    with pytest.raises(ValueError, match="files of several kinds"):
        load_rows(str(tmp_path / "*.[cj]s*"))


def test_files_that_do_not_fit_each_other_are_refused(tmp_path):
    for folder in ("more", "order", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "more/a.jsonl").write_text('{"prompt": "q"}')
    (tmp_path / "more/b.jsonl").write_text('{"prompt": "q", "margin": 1.0}')
    (tmp_path / "order/a.csv").write_text("prompt,chosen\nq,a\n")
    (tmp_path / "order/b.csv").write_text("chosen,prompt\na,q\n")
    for name, says in (("more", "margin"), ("order", "chosen")):
        with pytest.raises(ValueError, match=rf"same columns and types, in the same order\. .*{says}.*\.$"):
            load_rows(str(tmp_path / name))
    Dataset.from_list(ROWS).to_parquet(tmp_path / "empty/a.parquet")
    pq.write_table(Dataset.from_list(ROWS).data.table.slice(0, 0), tmp_path / "empty/b.parquet")
    with pytest.raises(ValueError, match="one of its files contains no rows; remove it"):
        load_rows(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="it contains no rows"):
        load_rows(str(tmp_path / "empty/b.parquet"))


def test_other_separators_than_commas_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt;chosen\nq;a\n")
    with pytest.raises(ValueError, match="has only the column 'prompt;chosen'; separate columns by commas"):
        load_rows(str(tmp_path / "rows.csv"))


def test_rows_of_more_fields_than_the_header_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\nq,a,b,0.5\nq2,a,b,1\n")
    with pytest.raises(
        ValueError, match=r"rows\.csv cannot be read as csv: it has rows with more fields than the header"
    ):
        load_rows(str(tmp_path / "rows.csv"))


def test_whatever_load_dataset_reads(tmp_path):
    rows = Dataset.from_list(ROWS)
    rows.to_csv(tmp_path / "rows.csv")
    rows.to_csv(tmp_path / "rows.tsv", sep="\t")
    for folder in ("shards", "repository/data"):
        (tmp_path / folder).mkdir(parents=True)
        rows.to_parquet(tmp_path / folder / ("a.parquet" if folder == "shards" else "train-00000-of-00001.parquet"))
    rows.to_parquet(tmp_path / "shards/b.parquet")
    (tmp_path / "repository/README.md").write_text("# Rows")
    for name, count in (("rows.csv", 2), ("rows.tsv", 2), ("shards", 4), ("shards/*.parquet", 4), ("repository", 2)):
        assert list(load_rows(str(tmp_path / name))) == ROWS * (count // 2), name
    # Shards tell no splits apart, but the repository does
    assert load_rows(str(tmp_path / "shards"), "test").num_rows == 4
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        load_rows(str(tmp_path / "repository"), "test")


def test_dates_are_hashed_and_values_without_a_stable_text_refused():
    assert hash_of_rows(Dataset.from_list(ROWS)) == "0a100232ffd0d1fb6938392bf183aa2b"  # as in earlier records
    moment = datetime(2024, 1, 2, 3, 4, 5)
    values = [moment, moment.replace(tzinfo=UTC), moment.date(), moment.time(), timedelta(1), Decimal("1.0"), b"x"]
    hashes = [hash_of_rows([{"created": value}]) for value in values]
    assert hashes == [hash_of_rows([{"created": value}]) for value in values] and len({*hashes}) == len(values)
    with pytest.raises(ValueError, match="a value of type object, which cannot be hashed"):
        hash_of_rows([{"image": object()}])


def test_texts_of_csv_files_stay_text(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,margin\nWhich abbreviation?,NA,None,1\n2 + 2?,4,,2\n")
    rows = load_rows(str(tmp_path / "rows.csv"))
    assert rows[0] == {"prompt": "Which abbreviation?", "chosen": "NA", "rejected": "None", "margin": 1}
    assert rows[1] == {"prompt": "2 + 2?", "chosen": "4", "rejected": None, "margin": 2}
