"""Every benchmark on every real file, with a scorer that likes long responses."""

import json

import pytest
from benchmark_files import lengths
from shared_data import read_rows, shared_data

from cloud_hf.evaluation import judge_bench, llm_bar, preference_pairs, reward_bench, rm_bench
from cloud_hf.evaluation.benchmarks import BENCHMARKS
from cloud_hf.evaluation.best_of_n import expected_best_of
from cloud_hf.evaluation.rm_bench import LEVELS


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
