import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from builders_for_tests import read_rejects, read_rows
from datasets import Features, List, Value

from cloud_hf.data.shards import DatasetFolder, Reject, add_counts, merge, read_record, read_shards


FEATURES = Features({"id": Value("string"), "texts": List(Value("string")), "margin": Value("float32")})


def make_results(count):
    """Rows with rejects among them."""
    return [
        Reject(i, f"p{i}", "failed" if i % 5 else "dropped", "cut")
        if i % 3 == 1
        else {"id": f"p{i}", "texts": [f"text {i}"] * (i % 4), "margin": None if i % 2 else i / 3}
        for i in range(count)
    ]


def write(path, results, rows_read, features=FEATURES, **settings):
    async def stream():
        for result in results:
            yield result

    settings = {
        "builder": "oracle critiques",
        "shard": "0/1",
        "rows": rows_read,
        "hash": str(path),
        "seed": 1,
        **settings,
    }
    folder = DatasetFolder(str(path), "Oracle critiques", settings)
    counts = {"rows_read": rows_read, "answers": 2 * rows_read, "lengths": {"chosen": rows_read}, "share": 0.5}
    folder.write_record(asyncio.run(folder.write(stream(), features, counts)))
    return str(path)


def write_shards(tmp_path, **settings):
    """Three unequal ones; indices of rejects count within a shard."""
    results, folders = make_results(20), []
    for index, (start, end) in enumerate(((0, 7), (7, 14), (14, 20))):
        part = [
            replace(result, index=result.index - start) if isinstance(result, Reject) else result
            for result in results[start:end]
        ]
        folders.append(write(tmp_path / f"out-{index}", part, end - start, shard=f"{index}/3", **settings))
    return folders


def test_rejects_with_any_unicode_line_separator_are_read(tmp_path):
    text = "one\u2028two\u0085three\x0bfour"
    results = [Reject(0, "p0", "dropped", "tie", details={"text": text}), *make_results(1)]
    folder = write(tmp_path / "out", results, 2)
    [shard] = read_shards([folder])
    assert [reject["details"]["text"] for reject in shard.rejects()] == [text]


def test_the_result_is_that_of_one_run(tmp_path):
    whole = write(tmp_path / "whole", make_results(20), 20)
    folders = write_shards(tmp_path)
    counts = asyncio.run(merge(read_shards(folders[::-1]), str(tmp_path / "merged")))
    assert read_rows(tmp_path / "merged") == read_rows(tmp_path / "whole")
    assert read_rejects(tmp_path / "merged") == read_rejects(tmp_path / "whole")
    merged, one = read_record(tmp_path / "merged"), read_record(whole)
    assert merged["counts"] == counts == {**one["counts"], "share": [0.5, 0.5, 0.5]}
    assert merged["settings"].pop("merged_from") == {"shards": 3, "hashes": folders}
    assert merged["settings"] == {name: value for name, value in one["settings"].items() if name != "hash"}
    assert (tmp_path / "merged" / "README.md").read_text().startswith("---\n")


def test_counts_are_added_by_name():
    added = add_counts([{"a": 1, "b": {"x": 2}, "c": 0.5}, {"a": 2, "b": {"x": 1, "y": 3}, "c": 0.7}])
    assert added == {"a": 3, "b": {"x": 3, "y": 3}, "c": [0.5, 0.7]}


def change_setting(folders):
    path = Path(folders[1], "build.json")
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    return folders


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folders: folders[:2], "1 of 3 shards are missing: 2"),
        (lambda folders: [*folders, folders[1]], "are both shard 1 of 3"),
        (change_setting, "not from the same run: they differ in `seed`"),
        (lambda folders: [*folders[:2], folders[2] + "-absent"], "has no build.json"),
    ],
)
def test_what_is_not_one_run_is_refused(spoil, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_shards(spoil(write_shards(tmp_path)))


def test_ids_and_columns_are_checked(tmp_path):
    one = write(tmp_path / "one", [{"id": "a", "texts": [], "margin": 1.0}], 1, shard="0/2")
    two = write(tmp_path / "two", [{"id": "a", "texts": [], "margin": 1.0}], 1, shard="1/2")
    with pytest.raises(ValueError, match="the id 'a' is also in"):
        read_shards([one, two])
    other = Features({"id": Value("string"), "texts": Value("string"), "margin": Value("float32")})
    two = write(tmp_path / "two", [{"id": "b", "texts": "", "margin": 1.0}], 1, other, shard="1/2")
    with pytest.raises(ValueError, match="have different columns"):
        read_shards([one, two])
    three = write(tmp_path / "three", [{"id": "c", "texts": [], "margin": 1.0}], 1, shard="1/3")
    with pytest.raises(ValueError, match=r"differ in `shard` \(2 and 3 parts\)"):
        read_shards([one, three])
