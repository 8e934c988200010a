"""Shards of a builder, merged, are what one run writes."""

import json

from builders_for_tests import read_rejects, read_rows, run_script
from completion_server import default_answer, serve_completions


def test_shards_of_oracle_critiques(tmp_path):
    rows = [
        {"id": f"p{i}", "prompt": f"What is {i} + 30?", "chosen": f"It is {i + 30}.", "rejected": f"It is {i}."}
        for i in range(23)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def write(body):  # some critiques are cut for good: dropped rows lie among the others
        text = body["messages"][0]["content"]
        return default_answer(body)[0], "length" if any(f"What is {i} +" in text for i in (3, 8, 9, 20)) else "stop"

    def build(server, out, *more):
        options = ["--dataset_name", tmp_path / "pairs.jsonl", "--output_dir", out, "--base_url", server.url, *more]
        ended = run_script("build_oracle_critiques", *options, log_dir=tmp_path)
        assert ended.status == 0, ended.output

    folders = [tmp_path / f"out-{index}" for index in range(4)]
    with serve_completions(write=write) as server:
        for index, folder in enumerate(folders):
            build(server, folder, "--shard", f"{index}/4")
        build(server, tmp_path / "whole")
    merged = ["--shards", *reversed(folders), "--output_dir", tmp_path / "merged"]
    ended = run_script("merge_shards", *merged, log_dir=tmp_path)
    assert ended.status == 0 and "19 rows from 4 shards" in ended.output, ended.output
    assert read_rows(tmp_path / "merged") == read_rows(tmp_path / "whole")
    assert read_rejects(tmp_path / "merged") == read_rejects(tmp_path / "whole")
    counts = [json.loads((tmp_path / name / "build.json").read_text())["counts"] for name in ("merged", "whole")]
    assert counts[0] == counts[1]
    ended = run_script("merge_shards", "--shards", *folders[:3], "--output_dir", tmp_path / "x", log_dir=tmp_path)
    assert ended.status == 2 and "1 of 4 shards are missing: 3" in ended.output
    assert not (tmp_path / "x").exists()


def test_shards_of_different_rows_and_unfinished_ones_are_refused(tmp_path):
    def build(server, count, out, *more):
        rows = [{"id": f"p{i}", "prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(count)]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        options = [
            "--dataset_name",
            tmp_path / "pairs.jsonl",
            "--output_dir",
            tmp_path / out,
            "--base_url",
            server.url,
        ]
        assert run_script("build_oracle_critiques", *options, *more, log_dir=tmp_path).status == 0

    def merge(*shards, out="merged"):
        folders = [tmp_path / shard for shard in shards]
        return run_script("merge_shards", "--shards", *folders, "--output_dir", tmp_path / out, log_dir=tmp_path)

    with serve_completions() as server:
        build(server, 10, "a", "--shard", "0/2")
        build(server, 30, "b", "--shard", "1/2")
        build(server, 10, "c", "--shard", "1/2")
    ended = merge("a", "b")
    assert (
        ended.status == 2
        and "they differ in `contents_of_all_shards`, `ids_of_all_shards`, `rows_of_all_shards`" in ended.output
    )
    assert merge("a", "c").status == 0
    ended = merge("a", "c", out="b")
    assert ended.status == 2 and "started with other settings" in ended.output
    (tmp_path / "c" / "rejects.jsonl").write_text('{"index": 0, "id": "p5", "kind": "failed", "reason": "x"}\n')
    ended = merge("a", "c")
    assert ended.status == 2 and "the number of rows or rejects differs from its build.json" in ended.output
