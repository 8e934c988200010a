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
    assert ended.status == 0 and "19 rows of 4 shards" in ended.output, ended.output
    assert read_rows(tmp_path / "merged") == read_rows(tmp_path / "whole")
    assert read_rejects(tmp_path / "merged") == read_rejects(tmp_path / "whole")
    counts = [json.loads((tmp_path / name / "build.json").read_text())["counts"] for name in ("merged", "whole")]
    assert counts[0] == counts[1]
    ended = run_script("merge_shards", "--shards", *folders[:3], "--output_dir", tmp_path / "x", log_dir=tmp_path)
    assert ended.status == 1 and "Of 4 shards 1 are missing: 3" in ended.output
    assert not (tmp_path / "x").exists()
