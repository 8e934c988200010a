"""Files that leaderboard tools read, from scores made by hand."""

import json

from benchmark_files import pair, write_rows
from evaluations_for_tests import evaluation
from pyarrow import parquet

from cloud_hf.data.journal import key_of
from cloud_hf.evaluation.benchmarks import BENCHMARKS, preference_pairs, reward_bench, reward_bench_2
from cloud_hf.evaluation.report.files import write_leaderboard_files, write_scores
from cloud_hf.evaluation.set_results import Evaluation


def written(module, name, rows, rewards, tmp_path, benchmark=None) -> dict[str, dict]:
    loaded = module.load([write_rows(tmp_path / "rows.jsonl", rows)])
    evaluation = Evaluation(name, name, module.score(loaded, rewards), loaded, [], 0, 0, benchmark=benchmark)
    folder = tmp_path / "out"
    folder.mkdir()
    write_leaderboard_files("org/rm", "rm", evaluation, folder)
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir()}


def scores(found: dict) -> dict:
    return {name: value for name, value in found.items() if name not in ("model", "model_type", "chat_template")}


def test_prior_sets_have_a_file_of_their_own(tmp_path):
    rows = [pair("hep-go"), pair("shp"), pair("shp", 1), pair("made-up")]
    found = written(
        reward_bench, "reward_bench", rows, [(1, 0), (1, 0), (0, 0), (1, 0)], tmp_path, BENCHMARKS["reward_bench"]
    )
    assert {name: scores(part) for name, part in found.items()} == {
        "reward_bench_rm.json": {"hep-go": 1.0},
        "reward_bench_prior_sets_rm.json": {"shp": 0.5},
    }
    assert all(part["model"] == "org/rm" for part in found.values())


def test_the_second_version(tmp_path):
    """A shared maximum counts its share; Ties has its own score, and none where a row lacks its sibling."""
    rows = [
        {**pair("Math"), "chosen": ["a"], "rejected": ["b", "c", "d"]},
        {**pair("Ties"), "id": "ref:1", "chosen": ["a"], "rejected": ["b"]},
    ]
    found = written(
        reward_bench_2, "reward_bench_2", rows, [(1, 1, 0, 0), (1, 0)], tmp_path, BENCHMARKS["reward_bench_2"]
    )
    assert {name: scores(part) for name, part in found.items()} == {"reward_bench_2_rm.json": {"Math": 0.5}}


def test_other_sets_have_none(tmp_path):
    """Not even one with its name and its subsets."""
    assert written(preference_pairs, "reward_bench", [pair("hep-go")], [(1, 0)], tmp_path) == {}


def test_all_scores_are_in_the_parquet_file(rows, tmp_path):
    found = evaluation(rows, [[1, 0], [1, 0], [0.25, 1], [1, 0]])
    write_scores([found, found], tmp_path / "scores.parquet")
    table = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(table) == 16
    assert table[4] == {
        "benchmark": "bench", "row": "hep-rust/2", "row_hash": key_of(rows[2].prompt, rows[2].responses),
        "subset": "hep-rust", "response": 0, "is_chosen": True, "reward": 0.25,
        "rewards": [0.25], "critiques": ["Fine."], "finish_reasons": ["stop"],
    }  # fmt: skip
