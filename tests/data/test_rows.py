import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from cloud_hf.data.rows import load_rows


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
    with pytest.raises(ValueError, match="is a folder, but not a dataset"):
        load_rows(str(tmp_path / "folder"))
    Dataset.from_dict({"prompt": []}).save_to_disk(tmp_path / "no-rows")
    with pytest.raises(ValueError, match="no-rows holds no rows"):
        load_rows(str(tmp_path / "no-rows"))
    for name, text in (("empty.jsonl", ""), ("blank.jsonl", "\n\n"), ("broken.jsonl", '{"a": 1}\n{"a": ')):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} cannot be read as json: \\w"):
            load_rows(str(tmp_path / name))
    (tmp_path / "rows.csv").write_text("prompt")
    with pytest.raises(ValueError, match="a dataset file ends in"):
        load_rows(str(tmp_path / "rows.csv"))
