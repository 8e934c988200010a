"""Every benchmark on every real file, with a scorer that likes long responses."""

import json

import pytest
from benchmark_files import lengths, pair, write_rows
from datasets import Dataset
from hub_for_tests import run_with_hub, serve_hub
from shared_data import read_rows, shared_data

from cloud_hf.evaluation.benchmarks import (
    BENCHMARKS,
    judge_bench,
    llm_bar,
    load_benchmarks,
    preference_pairs,
    reward_bench,
    rm_bench,
)
from cloud_hf.evaluation.benchmarks.rm_bench import LEVELS
from cloud_hf.evaluation.metrics.best_of_n import expected_best_of


MESSAGES = [{"role": "user", "content": "p"}]
STYLES = {"chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"]}
# The official datasets' splits and columns, one row each
HUB = {
    "allenai/reward-bench": {
        "filtered": {"prompt": "p", "chosen": "c", "chosen_model": "m", "rejected": "r", "rejected_model": "m", "subset": "hep-go", "id": 7}
    },
    "allenai/preference-test-sets": {
        name: {"prompt": MESSAGES, "chosen": "c", "rejected": "r"}
        for name in ("anthropic_harmless", "anthropic_helpful", "anthropic_hhh", "shp", "summarize")
    },
    "allenai/reward-bench-2": {
        "test": {
            "id": "7", "prompt": "p", "chosen": ["c"], "rejected": ["r0", "r1", "r2"], "num_correct": 1, "num_incorrect": 3,
            "total_completions": 4, "models": ["m"] * 4, "subset": "Focus", "additional_metadata": None,
        }
    },
    "THU-KEG/RM-Bench": {"train": {"id": "7", "prompt": "p", **STYLES, "domain": "safety-refuse"}},
    "ScalerLab/JudgeBench": {
        split: {
            "pair_id": split, "original_id": "7", "source": "livebench-math", "question": "p", "response_model": "m",
            "response_A": "r", "response_B": "c", "label": "B>A",
        }
        for split in ("gpt", "claude")
    },
}  # fmt: skip


def write_hub(folder) -> dict:
    repos = {}
    for number, (name, splits) in enumerate(HUB.items()):
        repos[name] = folder / str(number)
        (repos[name] / "data").mkdir(parents=True)
        card = ["---", "configs:", "- config_name: default", "  data_files:"]
        for split, row in splits.items():
            Dataset.from_list([row]).to_parquet(repos[name] / "data" / f"{split}-00000-of-00001.parquet")
            card += [f"  - split: {split}", f"    path: data/{split}-*"]
        (repos[name] / "README.md").write_text("\n".join([*card, "---", ""]))
    return repos


LOAD_ALL = """
import json
from cloud_hf.evaluation.benchmarks import BENCHMARKS, load_benchmarks
from cloud_hf.evaluation.benchmarks import preference_pairs
rows = {name: benchmark.load() for name, benchmark in BENCHMARKS.items() if name != "llm_bar"}
rows["pairs"] = preference_pairs.load(["allenai/preference-test-sets"], split="anthropic_harmless")
print(json.dumps({name: [[row.id, row.subset, row.chosen, row.rejected] for row in loaded] for name, loaded in rows.items()}))
"""


def test_the_official_datasets_load_by_their_ids(tmp_path):
    """From a Hub on this machine with the official ids, splits and columns."""
    with serve_hub(write_hub(tmp_path)) as server:
        result = run_with_hub(server, tmp_path / "cache", "-c", LOAD_ALL)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout.splitlines()[-1])
    core = ["hep-go/7", "hep-go", ["c"], ["r"]]
    priors = [[f"{name}/0", name, ["c"], ["r"]] for name in ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")]
    assert rows == {
        "reward_bench": [core],
        "reward_bench_with_prior_sets": [core, *priors],
        "reward_bench_2": [["Focus/7", "Focus", ["c"], ["r0", "r1", "r2"]]],
        "rm_bench": [["safety-refuse/7", "safety-refuse", STYLES["chosen"], STYLES["rejected"]]],
        "judge_bench_gpt": [["math/gpt", "math", ["c"], ["r"]]],
        "judge_bench_claude": [["math/claude", "math", ["c"], ["r"]]],
        "pairs": [["preference-test-sets/0", "preference-test-sets", ["c"], ["r"]]],
    }


def reference():
    return json.loads((shared_data() / "scoring_reference.json").read_text())["length_only_on_these_files"]


def files() -> dict[str, str]:
    return {path.name.split(".")[0]: str(path) for path in sorted((shared_data() / "eval").iterdir())}


def score(module, names):
    rows = module.load(names)
    return module.score(rows, lengths(rows))


def test_what_length_alone_reaches_on_each_file():
    """The published figures have four digits."""
    assert set(reference()) == set(files())
    for name, figures in reference().items():
        path = files()[name]
        if name == "gsm8k_bon4":
            rows = read_rows(shared_data() / "eval" / f"{name}.jsonl.gz")
            rewards = [[len(text) for text in row["responses"]] for row in rows]
            assert len(rows) == figures["n"]
            for size, key in ((1, "random_correct"), (4, "longest")):
                best = [expected_best_of(x, row["correct"], size) for x, row in zip(rewards, rows, strict=True)]
                assert round(sum(best) / len(best), 4) == pytest.approx(figures[key], abs=1e-9), (name, key)
        elif name.startswith("rmbench"):
            scores = score(rm_bench, [path])
            [domain] = scores.subsets
            for level in LEVELS:
                figure = scores.figures[f"{domain} {level}"]
                assert (figure.n, round(figure.value, 4)) == (figures["n"], figures[level]), (name, level)
        else:
            figure = score(preference_pairs, [path]).figures["accuracy"]
            assert (figure.n, round(figure.value, 4)) == (figures["n"], figures["acc"]), name


def test_the_same_files_as_benchmarks():
    """Files of a benchmark together, scored by its own arithmetic: the parts are still what length alone reaches."""
    expected = {name: figures.get("acc") for name, figures in reference().items()}
    paths = files()
    core = [
        name for name in paths if name.startswith(("hep-", "math-prm", "llmbar-natural", "llmbar-adver", "xstest"))
    ]
    scores = score(reward_bench, [paths[name] for name in (*core, "anthropic_hhh")])
    for name in core:
        assert round(scores.subsets[name].value, 4) == expected[name]
    code = [name for name in core if name.startswith("hep-")]
    assert scores.figures["Reasoning"].value == pytest.approx(
        (984 * scores.subsets["math-prm"].value + 164 * sum(scores.subsets[name].value for name in code)) / (2 * 984)
    )
    assert round(scores.figures["Prior Sets"].value, 4) == expected["anthropic_hhh"]
    assert set(scores.unknown) == {"xstest-should-refuse-own", "xstest-should-respond-own"}
    assert len(scores.missing) == 23 - 12 and "donotanswer" in scores.missing
    scores = score(llm_bar, [path for name, path in paths.items() if name.startswith("llmbar")])
    assert scores.unknown == {} and scores.missing == () and len(scores.figures) == 2 + 5 + 5
    assert round(scores.figures["Neighbor"].value, 4) == expected["llmbar-adver-neighbor"]
    for split, undecidable in (("gpt", 0), ("claude", 1)):
        scores = score(judge_bench, [paths[f"judgebench-{split}"]])
        assert round(scores.figures["both orders"].value, 4) == expected[f"judgebench-{split}"]
        assert scores.undecidable == undecidable and scores.unknown == {} and scores.missing == ()
    scores = score(rm_bench, [path for name, path in paths.items() if name.startswith("rmbench")])
    assert scores.missing == ("math",) and scores.figures["safety"].n == 205 + 103


def test_what_every_benchmark_says_of_itself():
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.paper.startswith("https://arxiv.org/abs/") and "/" in benchmark.hub_id, name
    assert len({benchmark.title for benchmark in BENCHMARKS.values()}) == len(BENCHMARKS) - 1  # RewardBench twice


def test_a_command_line_names_benchmarks_and_files(tmp_path):
    a, b = (write_rows(tmp_path / f"part-{name}.jsonl.gz", [pair("hep-go", name)]) for name in "ab")
    write_rows(tmp_path / "folder" / "rows.jsonl", [pair("Natural", number) for number in range(3)])
    (tmp_path / "folder" / "notes.txt").write_text("not a dataset")
    loaded = load_benchmarks([f"reward_bench={tmp_path}/part-*", f"llm_bar={tmp_path}/folder"], limit=2)
    assert [found.name for found in loaded] == ["reward_bench", "llm_bar"]
    assert loaded[0].files == (a, b) and [row.id for row in loaded[0].rows] == ["hep-go/a", "hep-go/b"]
    assert [row.id for row in loaded[1].rows] == ["Natural/0", "Natural/1"]
    [loaded] = load_benchmarks([f"reward_bench={b},{a}"])
    assert loaded.files == (b, a) and len(loaded.rows) == 2


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (["reward_bnch"], "no benchmark 'reward_bnch'. Did you mean 'reward_bench'"),
        (["xyz=rows.jsonl"], "no benchmark 'xyz'. Known benchmarks: reward_bench, "),
        (["rm_bench=a.jsonl", "rm_bench=b.jsonl"], "listed 2 times"),
        (["rm_bench=absent-*.jsonl"], "rm_bench=absent-.*matches no data file"),
        (["llm_bar="], "llm_bar=: '' matches no data file"),
    ],
)
def test_benchmarks_that_cannot_be_found(specs, says):
    with pytest.raises(ValueError, match=says):
        load_benchmarks(specs)


def test_bad_rows_are_named_with_their_benchmark(tmp_path):
    file = write_rows(tmp_path / "twice.jsonl", [pair("hep-go"), pair("hep-go")])
    with pytest.raises(ValueError, match="reward_bench: Rows 0 and 1 have the same id 'hep-go/0'"):
        load_benchmarks([f"reward_bench={file}"])
