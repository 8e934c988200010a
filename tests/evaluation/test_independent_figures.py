"""Every figure of `report.json` against a second calculator, on all real evaluation files and on handmade rows for what they lack."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from statistics import fmean

import independent_figures as second
import pytest
from benchmark_files import pair, write_rows
from independent_figures import Comparison, Probed, Row
from matplotlib.figure import Figure
from models_for_tests import make_model
from pyarrow import parquet
from scripted_scorer import ScriptedScorer
from shared_data import read_rows, shared_data
from tokenizers_for_tests import make_tokenizer

from cloud_hf.commands import best_of_n, evaluate_rewards
from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.evaluation import scoring_arguments
from cloud_hf.evaluation.report import files


MODELS = {"cloud": True, "classic": False}
BENCHMARKS = {
    "reward_bench": (second.reward_bench, ("hep-*", "llmbar-natural*", "llmbar-adver-*", "math-prm*", "anthropic_hhh*", "xstest-*")),
    "reward_bench_2": (second.reward_bench_2, ()),
    "rm_bench": (second.rm_bench, ("rmbench-*",)),
    "judge_bench_gpt": (second.judge_bench, ("judgebench-gpt*",)),
    "judge_bench_claude": (second.judge_bench, ("judgebench-claude*",)),
    "llm_bar": (second.llm_bar, ("llmbar-*",)),
}  # fmt: skip
PAIRS = (
    "anthropic_harmless", "anthropic_hhh", "arenabench_gpt4_critiqued", "gsm8k_solutions", "mtbench_human", "pandalm_human",
    "qa_feedback_human", "xstest-should-refuse-own", "xstest-should-respond-own",
)  # fmt: skip


@pytest.fixture
def folder(base_folder, tmp_path, monkeypatch):
    for name, critique in MODELS.items():
        make_model(base_folder, critique=critique).config.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring_arguments, "open_any_model", open_hashing_backend)
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())
    return tmp_path


@contextmanager
def open_hashing_backend(name, args, show_progress=True):
    critique = MODELS[name]
    yield ScriptedScorer(name, critique), CritiqueFormat(make_tokenizer("llama3"), critique=critique), None


def handmade(folder: Path) -> dict[str, list[Path]]:
    """What the real files lack: RewardBench 2, RewardBench's Chat section, another prior set, and RM-Bench's mathematics."""
    subsets = {
        "alpacaeval-easy": 14,
        "mt-bench-med": 12,
        "refusals-dangerous": 11,
        "donotanswer": 13,
        "mt-bench-hard": 3,
    }
    chat = [
        pair(name, n, prompt=f"{name} {n}?", chosen=f"Yes + {n}", rejected="Yes" if n % 5 else f"Yes + {n}")
        for name, count in subsets.items()
        for n in range(count)
    ]
    shp = [pair("askbaking", n, prompt=f"Bake {n}?", chosen=f"{n} eggs +", rejected=f"{n} stones") for n in range(15)]
    styles = ("short", "long and plain", "**long**")
    math = [
        pair(
            "rmbench-math", n, prompt=f"Add {n}.",
            chosen=[f"{style} + {n}" for style in styles], rejected=[f"{style} - {n}" for style in styles],
        )
        for n in range(17)
    ]  # fmt: skip
    four = [
        pair(name, n, prompt=f"{name} {n}?", chosen=[f"+{n}"], rejected=[f"{letter}{n}" for letter in "abc"])
        for name in ("Factuality", "Precise IF", "Math", "Safety", "Focus")
        for n in range(25)
    ]
    for n in range(30):
        wrong = [f"{letter}{n}" for letter in "abc"]
        for kind, right in (("ref", [f"+{n}"]), ("tied", [f"+{n} {letter}" for letter in "xyz"[: 2 + n % 2]])):
            four.append(
                {**pair("Ties"), "id": f"{kind}:{n}", "prompt": f"{kind} {n}", "chosen": right, "rejected": wrong}
            )
    parts = {
        "reward_bench": {"chat": chat, "shp": shp}, "reward_bench_2": {"four": four}, "rm_bench": {"math": math},
    }  # fmt: skip
    for found in chain.from_iterable(part.items() for part in parts.values()):
        write_rows(folder / f"{found[0]}.jsonl", found[1])
    return {name: [folder / f"{file}.jsonl" for file in part] for name, part in parts.items()}


def official_subset(benchmark: str, path: Path, row: dict) -> str:
    stem, subset = path.name.split(".")[0], row["subset"]
    if benchmark == "reward_bench":
        return stem if stem in second.PRIOR_SETS else subset
    if benchmark == "llm_bar":
        short = subset.removeprefix("llmbar-").removeprefix("adver-").removeprefix("case-")
        return short if short.startswith("GPT") else short.capitalize().replace("_", "-")
    return subset.removeprefix("rmbench-").removeprefix("judgebench-")


def read_set(name: str, paths: list[Path], limit: int | None = None) -> list[tuple[str, dict]]:
    """The rows of a benchmark's files with their official subsets, or of a preference set with `"subset"` as their group."""
    rows, taken = [], {}
    for path in paths:
        for row in read_rows(path):
            subset = official_subset(name, path, row)
            taken[subset] = taken.get(subset, 0) + 1
            if limit is None or (taken[subset] if name in BENCHMARKS else len(rows) + 1) <= limit:
                rows.append((subset, row))
    return rows


def rows_of(path: Path, sets: dict[str, list[tuple[str, dict]]]) -> dict[str, list[Row]]:
    """The written scores of a model with the rows they are for."""
    written: dict[tuple[str, str], list[dict]] = {}
    for response in parquet.read_table(path).to_pylist():
        written.setdefault((response["benchmark"], response["row"]), []).append(response)
    found = {}
    for name, raw in sets.items():
        scores = [(id_, responses) for (benchmark, id_), responses in written.items() if benchmark == name]
        assert len(scores) == len(raw)
        found[name] = [
            Row(
                id_,
                subset,
                [one["reward"] for one in responses if one["is_chosen"]],
                [one["reward"] for one in responses if not one["is_chosen"]],
                [one["rewards"] for one in responses],
                [one["critiques"] for one in responses],
                [reason for one in responses for reason in one["finish_reasons"]],
                row,
            )
            for (id_, responses), (subset, row) in zip(scores, raw, strict=True)
        ]
        for made in found[name]:
            assert len(made.right) == len(second.listed(made.raw["chosen"])), made.id
            assert len(made.texts()) == len(made.by_critique), made.id
    return found


def known(name: str, rows: list[Row]) -> list[Row]:
    if name not in BENCHMARKS:
        return rows
    unknown = BENCHMARKS[name][0](rows)["unknown"]
    return [row for row in rows if row.subset not in unknown]


def evaluation_page(name: str, rows: list[Row]) -> dict:
    page = (BENCHMARKS[name][0] if name in BENCHMARKS else second.preference_pairs)(rows)
    cut = [reason == "length" for row in rows for reason in row.cut]
    counts = {"dropped": 0, "bad": 0, "shortened": 0, "repeated_ids": repeated(rows) if name not in BENCHMARKS else 0}
    row_accuracy = second.share([row.outcome() for row in known(name, rows)])
    return {
        "details": {},
        **page,
        **counts,
        "rows": len(rows),
        "row_accuracy": row_accuracy,
        "critiques_cut": sum(cut) / len(cut),
    }


def repeated(rows: list[Row]) -> int:
    return len(rows) - len({row.raw["id"] for row in rows})


def pairs_page(rows: list[Row]) -> dict:
    page = evaluation_page("", rows)
    groups = {name: {**found, "accuracy": found["value"]} for name, found in page["subsets"].items()}
    accuracy = page["figures"]["accuracy"]
    return {**page, **accuracy, "accuracy": accuracy["value"], "by_group": groups}


def compare_models(report: dict, by_model: dict[str, dict[str, list[Row]]], result: Comparison):
    """The parts of a report that rest on the rewards as scored."""
    for entry in report["benchmarks"]:
        name = entry["name"]
        result.compare(entry, evaluation_page(name, by_model[entry["model"]][name]), f"{entry['model']} {name}")
    for entry in report["results"]:
        expected = pairs_page(by_model[entry["model"]][Path(entry["dataset"]).name])
        result.compare(entry, expected, f"{entry['model']} {entry['dataset']}")
    for entry in report["differences"]:
        first, other = (known(entry["benchmark"], by_model[model][entry["benchmark"]]) for model in entry["models"])
        result.compare(entry, second.differences(first, other), f"differences {entry['benchmark']}")
    for entry in report["uncertainty"]:
        if entry["critiques"] == "as scored":
            rows = known(entry["dataset"], by_model[entry["model"]][entry["dataset"]])
            result.compare(entry, second.uncertainty(rows), f"{entry['model']} {entry['dataset']}, uncertainty")


def compare_samples(report: dict, sampled: dict[str, list[Row]], result: Comparison, length_column: str = ""):
    """The parts of a report that rest on sampled critiques, at one temperature."""
    tokenizer = make_tokenizer("llama3")
    for entry in report["self_consistency"]:
        rows = known(entry["dataset"], sampled[entry["dataset"]])
        lengths = [row.raw.get(length_column) for row in rows]
        if None in lengths:
            texts = [[text for found in row.critiques for text in found] for row in rows]
            lengths = [
                fmean(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in found) for found in texts
            ]
        expected = second.self_consistency(rows, lengths)
        for curve, found in zip(
            [expected["everything"], *expected["buckets"]], [entry["everything"], *entry["buckets"]], strict=True
        ):
            curve["intervals"] = [second.wilson(accuracy, curve["rows"]) for accuracy in found["accuracy"]]
        result.compare(entry, {**expected, "temperature": 0.5}, f"self-consistency {entry['dataset']}")
    for entry in report["uncertainty"]:
        if entry["critiques"] != "as scored":
            rows = known(entry["dataset"], sampled[entry["dataset"]])
            result.compare(entry, second.uncertainty(rows), f"{entry['dataset']}, uncertainty of samples")


def compare_probes(
    report: dict, folder: Path, by_model: dict[str, dict[str, list[Row]]], drawn: int, result: Comparison
):
    for entry in report["probes"]:
        every = [(name, row) for name, rows in by_model[entry["model"]].items() for row in known(name, rows)]
        altered: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
        for one in parquet.read_table(folder / f"out/probes_{entry['model']}.parquet").to_pylist():
            if one["probe"] == entry["probe"]:
                labels = altered.setdefault((one["benchmark"], one["row"]), {})
                labels.setdefault(one["altered"], {})[one["response"]] = one["reward"]
        if entry["probe"] == "batch":  # a scorer whose rewards depend on the text alone
            for measure in entry["measures"]:
                result.compare(measure["value"], 0.0, f"batch {measure['label']}")
            continue
        rows = [(name, Probed(row, altered.get((name, row.id), {}))) for name, row in every]
        if entry["probe"] == "length":
            result.compare(entry["rows"], len(rows), "probe length, rows")
        else:
            counts = Counter(name for name, _ in rows)
            result.compare(
                entry["rows"], sum(min(drawn, count) for count in counts.values()), f"probe {entry['probe']}, rows"
            )
            rows = [(name, row) for name, row in rows if row.variants]
        for measure in entry["measures"]:
            expected = second.probe_measure(measure["label"], [row for _, row in rows])
            result.compare(measure, expected, f"{entry['model']} {entry['probe']} {measure['label']}")
        for name, measures in entry["by_dataset"].items():
            for measure in measures:
                expected = second.probe_measure(measure["label"], [row for found, row in rows if found == name])
                result.compare(measure, expected, f"{entry['model']} {entry['probe']} {name} {measure['label']}")


def evaluate(
    folder: Path,
    names: Sequence[str] = tuple(BENCHMARKS),
    pairs: Sequence[str] = PAIRS,
    limit: int | None = None,
    **options,
) -> tuple[dict, dict[str, list[tuple[str, dict]]]]:
    data, made = shared_data() / "eval", handmade(folder)
    paths = {
        name: [*chain.from_iterable(sorted(data.glob(pattern)) for pattern in patterns), *made.get(name, [])]
        for name, (_, patterns) in BENCHMARKS.items()
        if name in names
    }
    pair_files = [next(data.glob(f"{name}.jsonl*")) for name in pairs]
    args = evaluate_rewards.EvaluationArguments(
        models=list(MODELS),
        output_dir="out",
        benchmarks=[f"{name}={','.join(map(str, files))}" for name, files in paths.items()],
        dataset_name=list(map(str, pair_files)),
        best_of_n=[str(data / "gsm8k_bon4.jsonl.gz")],
        group_column="subset",
        max_new_tokens=100,
        limit=limit,
        **options,
    )
    evaluate_rewards.main(args)
    paths |= {path.name: [path] for path in pair_files}
    sets = {name: read_set(name, files, limit) for name, files in paths.items()}
    return json.loads((folder / "out/report.json").read_text()), sets


def test_all_rows_as_scored(folder, monkeypatch, capsys):
    # No text is tokenised: every row fits
    prefix = CritiqueFormat(make_tokenizer("llama3")).encode_prefix("x", "y")
    monkeypatch.setattr(CritiqueFormat, "encode_prefix", lambda *chat: prefix)
    for name in ("plot_benchmarks", "plot_margins", "plot_rejection", "plot_reliability"):
        monkeypatch.setattr(files.plots, name, lambda *args: None)
    patterns = [pattern for _, part in BENCHMARKS.values() for pattern in part] + [
        f"{name}.*" for name in (*PAIRS, "gsm8k_bon4")
    ]
    assert all(any(file.match(pattern) for pattern in patterns) for file in (shared_data() / "eval").iterdir())
    report, sets = evaluate(folder)
    by_model = {name: rows_of(folder / f"out/scores_{name}.parquet", sets) for name in MODELS}
    result = Comparison()
    compare_models(report, by_model, result)
    problems = read_rows(shared_data() / "eval/gsm8k_bon4.jsonl.gz")
    for name, critique in MODELS.items():
        scorer = ScriptedScorer(name, critique)
        scored = [
            (
                [score.reward for score in scorer.score([row["prompt"]] * 4, row["responses"])],
                list(map(float, row["correct"])),
            )
            for row in problems
        ]
        result.compare(report["best_of_n"]["gsm8k_bon4.jsonl.gz"][name], second.best_of_n(scored), f"{name} best_of_n")
    with capsys.disabled():
        print(
            f"\n{result.exact} figures and {result.about} ends of bootstrap intervals compared, {len(result.wrong)} differ"
        )
    assert not result.wrong, "\n".join(result.wrong[:40])
    assert result.exact > 5000 and result.about > 400
    # It would notice
    changed = {**report["results"][0], "accuracy": report["results"][0]["accuracy"] + 1e-8}
    again = Comparison()
    again.compare(changed, pairs_page(by_model["cloud"][Path(changed["dataset"]).name]), "changed")
    assert len(again.wrong) == 1


def test_samples_and_probes(folder, capsys):
    """Some rows of sets with one and with several right responses, read as messages and as text."""
    report, sets = evaluate(
        folder,
        ["reward_bench_2", "judge_bench_claude"],
        ["anthropic_harmless", "gsm8k_solutions"],
        limit=20,
        self_consistency=4,
        self_consistency_temperatures=[0.5],
        probes=["all"],
        probe_rows=6,
    )
    by_model = {name: rows_of(folder / f"out/scores_{name}.parquet", sets) for name in MODELS}
    result = Comparison()
    compare_samples(report, rows_of(folder / "out/self_consistency_cloud_0.5.parquet", sets), result)
    compare_probes(report, folder, by_model, 6, result)
    with capsys.disabled():
        print(f"\n{result.exact} figures and {result.about} random ones compared, {len(result.wrong)} differ")
    assert not result.wrong, "\n".join(result.wrong[:40])
    assert result.exact > 1000 and result.about > 300


def test_lengths_of_a_column_and_reference_critiques(folder):
    """The column is that of one set; the other's lengths are those of its critiques."""
    [path] = (shared_data() / "eval").glob("arenabench_gpt4_critiqued.*")
    report, sets = evaluate(
        folder,
        ["judge_bench_claude"],
        [path.name.split(".")[0]],
        limit=40,
        self_consistency=4,
        self_consistency_temperatures=[0.5],
        length_column="chosen_score",
        reference_critiques=[str(path)],
    )
    result = Comparison()
    sampled = rows_of(folder / "out/self_consistency_cloud_0.5.parquet", sets)
    compare_samples(report, sampled, result, "chosen_score")
    column, tokens = (
        {entry["length_of"] for entry in report["self_consistency"] if (entry["dataset"] in BENCHMARKS) == is_set}
        for is_set in (False, True)
    )
    assert column == {"the column chosen_score"} and tokens != column
    [entry] = [entry for entry in report["critique_quality"] if entry["model"] == "cloud"]
    rows = [row for _, row in read_set(path.name, [path], entry["n"] // 2)]
    pairs = [(row["prompt"], row[side], row[f"{side}_feedback"]) for row in rows for side in ("chosen", "rejected")]
    scored = ScriptedScorer("cloud", True).score([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    expected = second.critique_quality([score.critique for score in scored], [pair[2] for pair in pairs])
    result.compare(entry, expected, "critique quality")
    assert not result.wrong, "\n".join(result.wrong[:40])
    assert result.exact > 40


def test_choices(folder):
    """best_of_n.json on real candidates, and on problems with other numbers of them, repeated ones and scores."""
    [path] = (shared_data() / "eval").glob("gsm8k_bon4.*")
    made = [
        {"id": str(n), "prompt": f"{n}?", "responses": [f"{n} " + "+" * (place % 3) for place in range(3 + n % 3)], "correct": [place * n % 4 / 2 for place in range(3 + n % 3)]}
        for n in range(12)
    ]  # fmt: skip
    write_rows(folder / "made.jsonl", made)
    best_of_n.main(
        best_of_n.BestOfNArguments(
            models=list(MODELS),
            output_dir="out",
            dataset_name=[str(path), "made.jsonl"],
            temperature=0.7,
            num_seeds=2,
            seed=3,
        )
    )
    report, result = json.loads((folder / "out/best_of_n.json").read_text()), Comparison()
    by_model: dict[tuple[str, str], list[list[float]]] = {}
    for entry in report["results"]:
        problems = read_rows(path) if entry["title"] == path.name else made
        scorer = ScriptedScorer(entry["model"], MODELS[entry["model"]])
        seeds = [
            [
                [score.reward for score in scorer.score([row["prompt"]] * len(row["responses"]), row["responses"], temperature=temperature, seed=seed)]
                for row in problems
            ]
            for seed, temperature in (((3, 0.7), (4, 0.7)) if entry["model"] == "cloud" else ((None, 0.0),))
        ]  # fmt: skip
        worth = [list(map(float, row["correct"])) for row in problems]
        by_model[entry["title"], entry["model"]] = second.worth_of_all(worth, seeds)
        found = {**entry, "choices": [["", value] for _, value in entry["choices"]], "differences": []}
        result.compare(found, second.choices(problems, seeds), f"{entry['model']} {entry['title']}")
    for entry in report["results"]:
        for part in entry["differences"]:
            ours, theirs = (by_model[entry["title"], model] for model in part["models"])
            gains = [our - their for our, their in zip(ours, theirs, strict=True)]
            result.compare(part, {**second.mean(gains), "models": part["models"]}, "differences")
    assert not result.wrong, "\n".join(result.wrong[:40])
    assert result.exact > 800 and len(report["results"]) == 4
