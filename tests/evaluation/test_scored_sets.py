"""What goes into a model's card, from scores made by hand."""

from benchmark_files import pair, write_rows
from huggingface_hub import ModelCard

from cloud_hf.card_results import add_results
from cloud_hf.evaluation.benchmarks import load_benchmarks, preference_pairs, rm_bench
from cloud_hf.evaluation.scored_sets import Sets, card_results
from cloud_hf.evaluation.set_results import Evaluation


def test_cards_say_where_the_rows_are_from(tmp_path):
    """A preference set on the Hub is not a local file, and its whole id is named."""
    local = write_rows(tmp_path / "own.jsonl", [pair("x")])
    [row] = preference_pairs.load([local])
    scores = preference_pairs.score([row], [(1, 0)])
    styles = {"chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
    benchmarks = load_benchmarks([f"rm_bench={write_rows(tmp_path / 'rm.jsonl', [pair('chat', **styles)])}"])
    missing = rm_bench.score(benchmarks[0].rows, [[1, 1, 1, 0, 0, 0]])
    evaluations = [Evaluation("rm_bench", "RM-Bench", missing, benchmarks[0].rows, [], 0, 0)]
    evaluations += [Evaluation(name, name, scores, [row], [], 0, 0) for name in ("own.jsonl", "a-set")]
    found = card_results(evaluations, Sets(benchmarks, {local: None, "org/a-set": None}, {}, {}))
    assert [(result.dataset_type, result.dataset_name) for result in found] == [
        ("own.jsonl", "own.jsonl (local files)"),
        ("org/a-set", "a-set"),
    ]


def test_a_card_keeps_results_of_other_rows_and_settings(tmp_path):
    """Another file of the same name, and other sampling, are other results; the same again replaces its own."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A card\n")

    def add(text: str, temperature: float, reward: float):
        local = write_rows(tmp_path / "own.jsonl", [pair("x", prompt=text)])
        [row] = preference_pairs.load([local])
        scores = preference_pairs.score([row], [(reward, 0)])
        evaluations = [Evaluation("own.jsonl", "own.jsonl", scores, [row], [], 0, 0)]
        settings = {"num_critiques": 4, "temperature": temperature}
        add_results(tmp_path, card_results(evaluations, Sets([], {local: None}, {}, {}), settings))

    for text, temperature, reward in (("a", 0.5, 1), ("b", 0.5, 1), ("a", 1.0, 1), ("a", 0.5, -1)):
        add(text, temperature, reward)
    found = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert sorted((result.metric_args["temperature"], result.metric_value) for result in found) == [
        (0.5, 0.0), (0.5, 1.0), (1.0, 1.0),
    ]  # fmt: skip
    assert len({result.dataset_revision for result in found}) == 2 and str(tmp_path) not in str(found)
