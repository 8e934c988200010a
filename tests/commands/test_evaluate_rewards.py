"""One command evaluates models on benchmarks, pairs and best-of-N; after being killed, it resumes."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pytest
import torch
from benchmark_files import pair, write_rows
from datasets import Dataset
from huggingface_hub import ModelCard
from models_for_tests import make_model, save_language_model, tiny_text_config
from pyarrow import parquet
from scripts_for_tests import EXAMPLES, run, start
from servers_for_tests import free_port, make_engine, serving
from tokenizers_for_tests import make_tokenizer
from transformers import AutoModelForSequenceClassification

from cloud_hf.cascade import CascadeFit
from cloud_hf.commands import evaluate_rewards
from cloud_hf.data.journal import Journal, JournalError
from cloud_hf.evaluation.benchmarks import BENCHMARKS, load_benchmarks, preference_pairs
from cloud_hf.evaluation.evaluation_arguments import SETTINGS
from cloud_hf.evaluation.journaled_scorer import open_score_journal
from cloud_hf.evaluation.metrics import critique_quality
from cloud_hf.evaluation.probes.run import NAMES
from cloud_hf.evaluation.scored_sets import ModelResults, Sets
from cloud_hf.loading import load_reward_model
from cloud_hf.model_identity import identify_model
from cloud_hf.scoring import TransformersScorer
from cloud_hf.serving.client import ServedModel


SCRIPT = EXAMPLES / "evaluate_rewards.py"
BUDGET = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = save_language_model(folder / "base")
    for name, options in (("cloud", {}), ("classic", {"critique": False})):
        make_model(base, **options).save_pretrained(folder / name)
        make_tokenizer("llama3").save_pretrained(folder / name)
        (folder / name / "README.md").write_text("---\nlicense: mit\n---\n# A card\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every kind of set; the third pair is in RewardBench too."""
    folder = tmp_path_factory.mktemp("data")

    def texts(number: int, right: str = "It is right.", wrong: str = "No!") -> dict:
        return {"prompt": f"What is {number}?", "chosen": f"{right} {number}", "rejected": wrong * (1 + number % 3)}

    names = ["hep-go", "hep-rust", "math-prm", "made-up"]
    rows = [pair(name, number, **texts(number)) for name in names for number in range(3)]
    rows.append(pair("hep-go", 3, prompt="Same", chosen="Alike", rejected="Alike"))
    write_rows(folder / "rb" / "a.jsonl", rows[:5])
    write_rows(folder / "rb" / "b.jsonl.gz", rows[5:])
    styles = {
        "chosen": ["Yes.", "Yes, it is.", "**Yes**, it is."],
        "rejected": ["No.", "No, it is not.", "**No**, it is not."],
    }
    write_rows(folder / "rm.jsonl", [pair("chat", n, **{**styles, "prompt": f"Is it {n}?"}) for n in range(3)])
    pairs = [
        {
            **texts(number),
            "topic": "ab"[number % 2],
            "swaps": number // 2,
            "reworded": [f"Tell me {number}."] * (number > 2),
        }
        for number in range(2, 6)
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    Dataset.from_list(pairs).save_to_disk(str(folder / "reward_bench"))
    problem = {"prompt": "1+1?", "responses": ["2", "3", "It is two."], "correct": [True, False, True]}
    write_rows(folder / "bon.jsonl", [problem])
    write_rows(folder / "twice.jsonl", [{**problem, "id": "a"}] * 2)
    write_rows(folder / "graded.jsonl", [{**problem, "correct": [7, 0.5, 1]}])
    return folder


def arguments(models, data, output_dir, *names, **options):
    options = {
        "dataset_name": [str(data / "pairs.jsonl")],
        "best_of_n": [str(data / "bon.jsonl")],
        "benchmarks": [f"reward_bench={data}/rb", f"rm_bench={data}/rm.jsonl"],
        "max_new_tokens": BUDGET,
        **options,
    }
    named = [str(models / name) for name in names or ("cloud", "classic")]
    return evaluate_rewards.EvaluationArguments(models=named, output_dir=str(output_dir), **options)


def evaluate(*args, **options) -> dict:
    args = arguments(*args, **options)
    evaluate_rewards.main(args)
    return json.loads((Path(args.output_dir) / "report.json").read_text())


@pytest.fixture(scope="module")
def done(models, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return folder, evaluate(models, data, folder, group_column="topic")


# ---------------------------------------------------------------------------------------------------- the figures


def test_figures_are_those_computed_directly(models, data, done):
    folder, report = done
    assert report["version"] == 1
    for name in ("cloud", "classic"):
        scorer = TransformersScorer(*load_reward_model(str(models / name)), batch_size=3)

        def rewards(rows, scorer=scorer):
            scores = iter(
                scorer.score(
                    [row.prompt for row in rows for _ in row.responses],
                    [response for row in rows for response in row.responses],
                    max_new_tokens=BUDGET,
                )
            )
            return [[next(scores).reward for _ in row.responses] for row in rows]

        found = {part["name"]: part for part in report["benchmarks"] if Path(part["model"]).name == name}
        for loaded in load_benchmarks([f"reward_bench={data}/rb", f"rm_bench={data}/rm.jsonl"]):
            expected = loaded.benchmark.score(loaded.rows, rewards(loaded.rows)).summary()
            written = found[loaded.name]
            assert written["figures"] == json.loads(json.dumps(expected["figures"]))
            assert written["unknown"] == expected["unknown"] and written["undecidable"] == expected["undecidable"]
            assert set(expected["notes"]) <= set(written["notes"])
        assert found["reward_bench"]["unknown"] == {"made-up": 3} and found["reward_bench"]["undecidable"] == 1
        rows = preference_pairs.load([str(data / "pairs.jsonl")])
        expected = preference_pairs.score(rows, rewards(rows))
        assert found["pairs.jsonl"]["figures"]["accuracy"]["value"] == expected.value
        [older] = [result for result in report["results"] if Path(result["model"]).name == name]
        assert older["accuracy"] == expected.value and set(older["by_group"]) == {"a", "b"}
        official = json.loads((folder / f"reward_bench_{name}.json").read_text())
        assert official["hep-go"] == found["reward_bench"]["subsets"]["hep-go"]["value"]
        assert set(official) == {"hep-go", "hep-rust", "math-prm", "model", "model_type", "chat_template"}


def test_scalar_models_and_ensembles(models, data, tmp_path):
    """A scalar model next to ours, and the mean of both; with other label weights, its scores are refused."""
    torch.manual_seed(0)
    labels = {0: "kind", 1: "right"}
    config = tiny_text_config("qwen2", "qwen2_5", id2label=labels, label2id={"kind": 0, "right": 1})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "scalar")
    make_tokenizer("qwen2_5").save_pretrained(tmp_path / "scalar")
    scalar, folder = tmp_path / "scalar", tmp_path / "results"
    options = {"ensembles": [f"mean:classic,{scalar}"], "label_weights": '{"right": 1}', "benchmarks": []}
    report = evaluate(models, data, folder, "classic", scalar, **options)
    assert set(report["best_of_n"]["bon.jsonl"]) == {"classic", "scalar", "mean(classic,scalar)"}
    names = ("classic", "scalar", "mean(classic,scalar)")
    rewards = {name: np.array(parquet.read_table(folder / f"scores_{name}.parquet")["reward"]) for name in names}
    standard = [(values - values.mean()) / values.std() for values in (rewards["classic"], rewards["scalar"])]
    assert rewards["mean(classic,scalar)"] == pytest.approx(np.mean(standard, axis=0), abs=1e-9)
    text = (folder / "report.md").read_text()
    assert "mean(classic,scalar)" in text and "standardised" in text
    with pytest.raises(JournalError, match="label_weights"):
        evaluate(models, data, folder, "classic", scalar, **{**options, "label_weights": '{"kind": 1}'})


def test_cascades_and_compute(models, data, tmp_path):
    """Fitted on the other half of 40 pairs; a report without seconds, which are in a file of their own."""
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No!" * (1 + n % 3)} for n in range(40)]
    options = {"dataset_name": [str(write_rows(tmp_path / "forty.jsonl", rows))], "benchmarks": [], "best_of_n": []}
    options |= {"self_consistency": 2, "self_consistency_temperatures": [1.0], "cascade": ["classic,cloud,cloud@2"]}
    report = evaluate(models, data, tmp_path / "out", "classic", "cloud", max_new_tokens=3, **options)
    [found] = report["cascades"]
    assert found["model"] == "cascade(classic,cloud,cloud@2)" and found["stages"] == ["classic", "cloud", "cloud@2"]
    assert found["curve"][0]["tokens_per_row"]["value"] <= found["curve"][-1]["tokens_per_row"]["value"]
    fit = CascadeFit.load(tmp_path / "out" / "cascade(classic,cloud,cloud@2)_forty.jsonl.json")
    assert len(fit.stages) == 3 and len(set(fit.thresholds)) == 1
    points = {(point["model"], point["setting"]): point for point in report["compute"]}
    assert points["classic", "as scored"]["tokens_per_row"] == 0 < points["cloud", "T = 1, k = 1"]["tokens_per_row"]
    timed = json.loads((tmp_path / "out" / "compute.json").read_text())["points"]
    assert all(point["seconds_per_row"] > 0 for point in timed) and len(timed) == len(report["compute"])
    assert (tmp_path / "out" / "accuracy_vs_compute.png").stat().st_size > 5000
    text = (tmp_path / "out" / "report.md").read_text()
    assert "### Cascades" in text and "| critiques of | k | mean | median | trimmed mean | vote | likelihood |" in text
    with pytest.raises(ValueError, match=r"needs at least 40 rows, but .*forty\.jsonl has 39"):
        evaluate(models, data, tmp_path / "few", "classic", "cloud", limit=39, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cascade": ["classic"]}, "at least two different stages"),
        ({"cascade": ["classic,x"]}, "'x' is not one of `models`"),
        ({"cascade": ["classic,cloud@4"]}, r"`self_consistency` \(not set\)"),
        ({"cascade": ["classic,cloud"], "cascade_goal": "tokens=many"}, "could not convert"),
        (
            {"cascade": ["classic,cloud"], "combine": "vote", "num_critiques": 2, "temperature": 1.0},
            "`cascade` decides by the mean reward of several critiques, but `combine` is 'vote'",
        ),
        ({"cascade": ["classic,cloud"], "cascade_goal": "speed=1"}, "write accuracy=, loss=, tokens= or threshold="),
        (
            {"combine": "vote", "num_critiques": 2, "temperature": 1.0},
            "cannot measure the choices among only N of them in `best_of_n`",
        ),
        ({"combine": "median"}, "set `num_critiques` above 1"),
        ({"combine": "best", "num_critiques": 2, "temperature": 1.0}, "must be one of mean, median"),
    ],
)
def test_cascades_and_combinations_that_cannot_be(models, data, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        arguments(models, data, tmp_path, "classic", "cloud", **options)


def test_all_files_of_a_report(done):
    folder, report = done
    text = (folder / "report.md").read_text()
    for picture in ("benchmarks", "margins", "reliability"):
        assert f"({picture}.png)" in text and (folder / f"{picture}.png").stat().st_size > 5000
    for title in ("RewardBench", "RM-Bench", "pairs.jsonl", "Best-of-N: bon.jsonl", "Models on the same rows"):
        assert f"## {title}" in text
    assert "No rows of alpacaeval-easy" in text and "made-up (3)" in text
    assert {part["benchmark"] for part in report["differences"]} == {"reward_bench", "rm_bench", "pairs.jsonl"}
    assert set(report["best_of_n"]["bon.jsonl"]) == {"cloud", "classic"}
    table = parquet.read_table(folder / "scores_cloud.parquet").to_pylist()
    assert len(table) == 2 * 13 + 6 * 3 + 2 * 4
    by_response = {(row["benchmark"], row["row"], row["response"]): row for row in table}
    row = by_response["pairs.jsonl", "0", 0]
    assert row["reward"] == row["rewards"][0] and row["is_chosen"] and len(row["critiques"]) == 1
    # Equal chats are scored once: the first pair occurs in RewardBench three times, and "Alike" twice in one row
    assert row["reward"] == by_response["reward_bench", "hep-go/2", 0]["reward"]
    with (folder / "journal_cloud.jsonl").open() as file:
        assert len(list(file)) - 1 == 2 * 3 + 1 + 6 * 3 + 2 * 3 + 3


def test_a_report_names_its_sets_and_no_folder(models, data, done):
    """Sets by name and hash of their contents; the models and sets were given as absolute paths."""
    folder, report = done
    sets = {(part["kind"], part["name"]): part for part in report["environment"]["sets"]}
    assert set(sets) == {
        ("benchmark", "reward_bench"), ("benchmark", "rm_bench"), ("pairs", "pairs.jsonl"), ("problems", "bon.jsonl"),
    }  # fmt: skip
    assert [part["rows"] for part in sets.values()] == [13, 3, 4, 1]
    text = (folder / "report.md").read_text()
    assert all(f"({part['rows']} rows, {part['content_hash'][:12]})" in text for part in sets.values())
    assert report["arguments"]["models"] == ["cloud", "classic"]
    assert report["arguments"]["benchmarks"] == ["reward_bench=rb", "rm_bench=rm.jsonl"]
    for path in folder.glob("*"):
        if path.suffix in (".json", ".md", ".jsonl"):
            written = path.read_text()
            assert not any(str(place) in written for place in (models, data, folder)), path


def test_a_later_run_is_compared_row_by_row(models, data, done, tmp_path, capsys):
    evaluate(models, data, tmp_path / "later", "classic", max_new_tokens=2, benchmarks=[], best_of_n=[])
    evaluate_rewards.main(evaluate_rewards.EvaluationArguments(compare=[str(done[0]), str(tmp_path / "later")]))
    shown = capsys.readouterr().out
    name = done[0].name
    assert f"| pairs.jsonl | {name}: classic − later: classic | +0.0 points | 4 | 0 | 0 |" in shown
    assert "reward_bench: not in later." in shown and f"max_new_tokens is 8 in {name} and 2 in later" in shown


# ---------------------------------------------------------------------------------------------------- going on


@pytest.mark.full
def test_killed_twice_it_ends_with_the_same_report(models, data, done, tmp_path):
    """SIGKILL while it scores; the report is that of a run that was left alone, and of the same arguments."""
    args = arguments(models, data, "results")
    command = ["--models", *args.models, "--output_dir", tmp_path / "results", "--group_column", "topic"]
    command += ["--dataset_name", *args.dataset_name, "--best_of_n", *args.best_of_n, "--benchmarks", *args.benchmarks]
    command += ["--max_new_tokens", str(BUDGET), "--batch_size", "2", "--chunk_size", "2"]
    journals = [tmp_path / "results" / f"journal_{name}.jsonl" for name in ("cloud", "classic")]

    def entries() -> int:
        return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in journals if path.exists())

    kept = 0
    for target in (5, 17):
        process, _ = start("evaluate_rewards", *command)
        while entries() < target:
            assert process.is_alive(), "it ended before it was killed"
            time.sleep(0.002)
        process.kill()
        process.join()
        assert target <= entries() and kept <= entries()
        kept = entries()
        assert not (tmp_path / "results/report.md").exists()
    assert f"resuming with {kept} entries" in run("evaluate_rewards", *command)
    report = json.loads((tmp_path / "results/report.json").read_text())
    folder, expected = done
    for part in (report, expected):
        part.pop("arguments")
    assert rounded(report) == rounded(expected)
    texts = [(path / "report.md").read_text() for path in (tmp_path / "results", folder)]
    # Reports open with their command, which names the folder
    assert len({text.split("\n```\n", 1)[1] for text in texts}) == 1


def rounded(value):
    """Batches of other sizes differ in the last bits of a float."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def test_further_benchmarks_join_those_that_are_done(models, data, tmp_path, capsys):
    evaluate(models, data, tmp_path, "cloud", benchmarks=[], best_of_n=[])
    before = (tmp_path / "journal_cloud.jsonl").read_bytes()
    report = evaluate(models, data, tmp_path, "cloud")
    assert (tmp_path / "journal_cloud.jsonl").read_bytes().startswith(before)
    assert "resuming with 8 entries" in capsys.readouterr().out
    assert [part["name"] for part in report["benchmarks"]] == ["reward_bench", "rm_bench", "pairs.jsonl"]


def test_other_settings_other_weights_and_a_second_writer_are_refused(models, data, tmp_path):
    evaluate(models, data, tmp_path, "classic", limit=1)
    with pytest.raises(JournalError, match="`max_new_tokens` was 8 and is now 9"):
        evaluate(models, data, tmp_path, "classic", max_new_tokens=9)
    other = tmp_path / "other" / "classic"
    make_model(models / "base", seed=5, critique=False).save_pretrained(other)
    make_tokenizer("llama3").save_pretrained(other)
    with pytest.raises(JournalError, match="has changed since it was scored"):
        evaluate(tmp_path / "other", data, tmp_path, "classic")
    args = arguments(models, data, tmp_path, "classic")
    with open_score_journal("journal", args.models[0], "classic", args, evaluate_rewards.SETTINGS) as journal:
        assert isinstance(journal, Journal)
        with pytest.raises(JournalError, match="Another process is writing"):
            evaluate_rewards.main(args)


# ------------------------------------------------------------------------------------------------------ backends


@pytest.fixture(scope="module")
def servers(models):
    """The addresses of the CLoud and the classic model's servers."""
    with ExitStack() as stack:
        engines = [make_engine(load_reward_model(str(models / name))[0]) for name in ("cloud", "classic")]
        yield [stack.enter_context(serving(engine))[0].url for engine in engines]


def test_servers_score_the_same(models, data, done, servers, tmp_path):
    options = {"group_column": "topic", "backend": "server", "chunk_size": 7}
    report = evaluate(models, data, tmp_path, server_url=servers, **options)
    assert rounded(report["benchmarks"]) == rounded(done[1]["benchmarks"])


def test_servers_of_other_models_are_refused(models, data, servers, tmp_path):
    with pytest.raises(
        ValueError, match=r"serves .*classic, a classic model, but .*cloud is a CLoud model.*in the same order"
    ):
        evaluate(models, data, tmp_path, backend="server", server_url=servers[::-1])
    with pytest.raises(ValueError, match="1 addresses, but `models` has 2 models"):
        evaluate(models, data, tmp_path, backend="server", server_url=servers[:1])


def test_a_server_with_another_version_of_the_model_is_refused(models, data, tmp_path):
    """Its scores would be in the report, and in the journal together with the model's own."""
    engine = make_engine(load_reward_model(str(models / "cloud"))[0])
    version = identify_model(str(models / "cloud"))["model_version"]
    port = free_port()
    options = {"backend": "server", "server_url": [f"http://127.0.0.1:{port}"], "benchmarks": [], "best_of_n": []}
    with serving(engine, port=port, model_version=version):
        evaluate(models, data, tmp_path, "cloud", limit=1, **options)
    scored = (tmp_path / "journal_cloud.jsonl").read_text()
    says = f"serves .*cloud with version {'f' * 32}, but .*cloud has version {version}. Pass the model"
    with serving(engine, port=port, model_version="f" * 32), pytest.raises(ValueError, match=says):
        evaluate(models, data, tmp_path, "cloud", limit=2, **options)
    assert (tmp_path / "journal_cloud.jsonl").read_text() == scored


@pytest.mark.parametrize("backend", ["transformers", "vllm", "server"])
def test_every_backend_gets_its_arguments(backend, models, data, tmp_path, monkeypatch):
    """What reaches `open_any_model`; tests/serving/test_vllm.py runs vLLM for real."""
    seen = []

    def open_any_model(name, args, show_progress):
        seen.append((name, args.backend, args.vllm_options, args.server_url, show_progress))
        raise KeyboardInterrupt

    monkeypatch.setattr("cloud_hf.evaluation.scoring_arguments.open_any_model", open_any_model)
    served = ServedModel("cloud", True, None)
    monkeypatch.setattr("cloud_hf.evaluation.journaled_scorer.connect", lambda *_: (None, served))
    url = "http://127.0.0.1:1" if backend == "server" else None
    addresses = [url] if url else None
    options = "{}" if backend == "vllm" else None
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, data, tmp_path, "cloud", backend=backend, vllm_options=options, server_url=addresses)
    assert seen == [(str(models / "cloud"), backend, options, url, False)]


# ------------------------------------------------------------------------------------- self-consistency and probes


ROBUSTNESS = {
    "best_of_n": [],
    "self_consistency": 3,
    "self_consistency_temperatures": [1.0, 2.0],
    "length_column": "swaps",
    "probes": ["all"],
    "probe_rows": 2,
    "paraphrase_column": "reworded",
    "batch_size": 4,
    "chunk_size": 12,
}


@pytest.fixture(scope="module")
def probed(models, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    return folder, evaluate(models, data, folder, **ROBUSTNESS)


def test_curves_are_those_of_the_sampled_critiques(probed):
    folder, report = probed
    assert {Path(part["model"]).name for part in report["self_consistency"]} == {"cloud"}
    found = {(part["dataset"], part["temperature"]): part for part in report["self_consistency"]}
    assert set(found) == {(name, t) for name in ("reward_bench", "rm_bench", "pairs.jsonl") for t in (1.0, 2.0)}
    table = parquet.read_table(folder / "self_consistency_cloud_2.parquet").to_pylist()
    assert all(len(row["rewards"]) == 3 for row in table) and len({row["critiques"][0] for row in table}) > 1
    pairs: dict = {}
    for row in table:
        if row["benchmark"] == "pairs.jsonl":
            pairs.setdefault(row["row"], []).append(row["reward"])
    curve = found["pairs.jsonl", 2.0]
    assert curve["everything"]["accuracy"][-1] == sum(right > wrong for right, wrong in pairs.values()) / 4
    assert curve["everything"]["standard_errors"][-1] > 0 and len(curve["everything"]["accuracy"]) == 3
    assert [(part["label"], part["rows"]) for part in curve["buckets"]] == [("1", 2), ("2", 2)]
    assert curve["length_of"] == "the column swaps" and "tokens" in found["rm_bench", 1.0]["length_of"]
    assert found["reward_bench", 1.0]["everything"]["rows"] == 10  # three rows are of an unknown subset


def test_uncertainty_of_every_model_and_set(probed):
    _, report = probed
    kinds = {(Path(part["model"]).name, part["dataset"], part["critiques"]): part for part in report["uncertainty"]}
    assert len(kinds) == 3 * (1 + 3)
    assert set(kinds["cloud", "rm_bench", "mean of 3, T = 1"]["rejection"]["curves"]) == {"margin", "spread"}
    assert set(kinds["classic", "rm_bench", "as scored"]["rejection"]["curves"]) == {"margin"}
    assert kinds["classic", "rm_bench", "as scored"]["calibration"]["ece"]["n"] == 3 * 9
    for label in ("as scored", "mean of 3, T = 2"):
        assert kinds["cloud", "reward_bench", label]["calibration"]["ece"]["n"] == 10


def test_probes_of_every_model(probed):
    folder, report = probed
    names = [part["probe"] for part in report["probes"] if part["model"].endswith("classic")]
    assert names == list(NAMES) == [part["probe"] for part in report["probes"] if part["model"].endswith("cloud")]
    for part in report["probes"]:
        # The length of all rows but three, which are of an unknown subset
        assert part["rows"] == (17 if part["probe"] == "length" else 2 * 3)
        assert any(measure["value"] is not None for measure in part["measures"])
    table = parquet.read_table(folder / "probes_cloud.parquet").to_pylist()
    assert {row["probe"] for row in table} == set(NAMES) - {"length", "batch"}
    assert any(row["altered"] == "your paraphrases 1" for row in table)


def test_probes_combine_critiques_as_the_run_does(models, data, tmp_path, monkeypatch):
    found, run_probes = [], evaluate_rewards.run_probes

    def kept(*args, **options):
        found.extend(run_probes(*args, **options))
        return found

    monkeypatch.setattr(evaluate_rewards, "run_probes", kept)
    options = {"combine": "median", "num_critiques": 3, "temperature": 1.0, "probes": ["style"], "best_of_n": []}
    evaluate(models, data, tmp_path, "cloud", benchmarks=[], **options)
    [style] = found
    for row in style.probed:
        for score in (*row.row.scores, *(one.score for one in row.variants.values())):
            assert score.reward == median(score.rewards) != fmean(score.rewards)


def test_the_report_has_a_picture_for_everything(probed):
    folder, _ = probed
    text = (folder / "report.md").read_text()
    pictures = [f"probe_{name}.png" for name in NAMES]
    for kind in ("self_consistency", "rejection"):
        pictures += [f"{kind}_{name}.png" for name in ("reward_bench", "rm_bench", "pairs.jsonl")]
    for picture in pictures:
        assert f"({picture})" in text and (folder / picture).stat().st_size > 5000
    for title in ("## Self-consistency", "## Selective accuracy", "## Calibration", "## Probes"):
        assert title in text


def test_interrupted_anywhere_it_ends_with_the_same_report(probed, models, data, tmp_path, monkeypatch):
    """In the scores, in the sampled critiques, in the probes and between batches of the last probe."""
    whole, _ = probed
    score, calls = TransformersScorer.score, []

    def interrupted(self, *args, **options):
        calls.append(options)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return score(self, *args, **options)

    monkeypatch.setattr(TransformersScorer, "score", interrupted)
    for dies_at in (3, 6, 14, 12, 9):  # noqa: B007 (`interrupted` reads it)
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluate(models, data, tmp_path, **ROBUSTNESS)
    dies_at = None
    evaluate(models, data, tmp_path, **ROBUSTNESS)
    for name in ("report.json", "report.md"):
        text = (tmp_path / name).read_text().replace(tmp_path.name, whole.name)
        assert text == (whole / name).read_text()


def test_a_server_is_probed_the_same(probed, models, data, tmp_path):
    model, _ = load_reward_model(str(models / "cloud"))
    names = [name for name in NAMES if name != "batch"]  # its figures are rounding alone
    with serving(make_engine(model)) as (running, _):
        options = {**ROBUSTNESS, "backend": "server", "server_url": [running.url], "probes": names}
        report = evaluate(models, data, tmp_path, "cloud", **options)
    _, expected = probed
    for kind in ("uncertainty", "self_consistency", "probes"):
        found = [part for part in expected[kind] if part["model"].endswith("cloud") and part.get("probe") != "batch"]
        if kind == "self_consistency":  # servers return no likelihoods
            found = [{**part, "combinations": part["combinations"][:-1]} for part in found]
        assert near(report[kind]) == near(found)


def near(value):
    """Differences of rewards are as exact as rewards are, not as they are themselves."""
    if isinstance(value, dict):
        return {key: near(item) for key, item in value.items()}
    if isinstance(value, list):
        return [near(item) for item in value]
    return pytest.approx(value, abs=2e-4) if isinstance(value, float) else value


# ------------------------------------------------------------------------------------------- reference critiques


def test_critiques_are_compared_with_those_of_reference(models, data, tmp_path):
    """Both layouts; the model's own critiques are those of its scores, and a classic model has none."""
    single = {"prompt": "Is it 1?", "response": "Yes, it is.", "critique": "The answer is short."}
    double = pair("x", chosen_feedback="It is good.", rejected_feedback=["It is bad.", "Bad."])
    files = [
        write_rows(tmp_path / "a.jsonl", [single, {**single, "prompt": "Is it 2?"}]),
        write_rows(tmp_path / "b.jsonl", [double]),
    ]
    two = write_rows(tmp_path / "two.jsonl", [{**double, "prompt": f"Is it {n}?"} for n in range(3)])
    options = {"dataset_name": [], "benchmarks": [], "best_of_n": [], "reference_critiques": files}
    report = evaluate(models, data, tmp_path / "out", **options)
    found = {part["dataset"]: part for part in report["critique_quality"]}
    assert {Path(part["model"]).name for part in report["critique_quality"]} == {"cloud"}
    assert (found["a.jsonl"]["n"], found["b.jsonl"]["n"]) == (2, 2)
    model, tokenizer = load_reward_model(str(models / "cloud"))
    rows = critique_quality.load(files)
    scores = model.score(
        [row.prompt for row in rows], [row.response for row in rows], tokenizer, max_new_tokens=BUDGET
    )
    table = parquet.read_table(tmp_path / "out" / "critiques_cloud.parquet").to_pylist()
    assert [row["critique"] for row in table] == [score.critique for score in scores]
    losses = critique_quality.reference_losses(model, tokenizer, rows[:2])
    expected = critique_quality.score_critiques(
        [score.critique for score in scores[:2]], [row.critique for row in rows[:2]], losses
    )
    assert near(found["a.jsonl"]) == near(
        {"model": found["a.jsonl"]["model"], "dataset": "a.jsonl"}
        | expected.summary()
        | {"notes": found["a.jsonl"]["notes"]}
    )
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Critiques compared with references" in text and "| b.jsonl | cloud | 2 |" in text
    report = evaluate(models, data, tmp_path / "two", "cloud", **{**options, "reference_critiques": [two], "limit": 2})
    assert [part["n"] for part in report["critique_quality"]] == [4]  # both responses of two rows
    with pytest.raises(ValueError, match="none of `models` writes critiques"):
        evaluate(models, data, tmp_path / "out", "classic", **options)
    with pytest.raises(ValueError, match=r"row 0: `critique` is '  '; give a critique as text"):
        bad = write_rows(tmp_path / "bad.jsonl", [{**single, "critique": "  "}])
        evaluate(models, data, tmp_path / "out", "cloud", **{**options, "reference_critiques": [bad]})


def test_accuracy_against_tokens_read(models, data, tmp_path):
    """Scores from the journal give the same report; the complete critiques have the accuracy of the other figures."""
    options = {"benchmarks": [], "best_of_n": [], "read_every": 2, "num_critiques": 2, "temperature": 1.0}
    report, again = (evaluate(models, data, tmp_path, **options) for _ in range(2))
    assert report["anytime"] == again["anytime"]
    [found] = report["anytime"]
    assert found["dataset"] == "pairs.jsonl" and [point["limit"] for point in found["points"]] == [2, 4, 8, None]
    cloud, classic = report["benchmarks"]
    assert found["points"][-1]["accuracy"] == cloud["row_accuracy"] and classic["row_accuracy"]["n"] == 4
    assert found["points"][0]["tokens"]["value"] == 4.0  # of each of two critiques
    assert "### Accuracy against tokens read: pairs.jsonl" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "anytime_pairs.jsonl.png").exists()
    for row in parquet.read_table(tmp_path / "scores_cloud.parquet").to_pylist():
        assert [rewards[-1] for rewards in row["partial_rewards"]] == row["rewards"]
    assert "partial_rewards" not in parquet.read_schema(tmp_path / "scores_classic.parquet").names
    with pytest.raises(ValueError, match="none of the models writes critiques"):
        evaluate(models, data, tmp_path, "classic", read_every=2)


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"benchmarks": ["reward_bnch"]}, "Did you mean 'reward_bench'"),
        ({"benchmarks": ["rm_bench=absent.jsonl"]}, "'absent.jsonl' matches no data file"),
        ({"benchmarks": ["rm_bench={data}/rb"]}, "RM-Bench has one of each style"),
        ({"dataset_name": ["absent.jsonl"]}, "absent.jsonl: no such file"),
        ({"best_of_n": ["{data}/pairs.jsonl"]}, "needs the column"),
        ({"dataset_name": [], "best_of_n": [], "benchmarks": []}, "nothing to score"),
        ({"best_of_n": ["{data}/twice.jsonl"]}, "rows 0 and 1 have the same id 'a'"),
        ({"best_of_n": ["{data}/graded.jsonl"]}, "row '0': `correct` contains 7, but values must be from 0 to 1"),
        ({"best_of_n": ["{data}/bon.jsonl", "{data}//bon.jsonl"]}, "`best_of_n` lists .*bon.jsonl twice"),
        ({"dataset_name": ["{data}/reward_bench"]}, "are both called 'reward_bench'"),
        ({"chunk_size": 0}, "`chunk_size` is 0"),
        ({"read_every": 0}, "`read_every` is 0"),
        ({"stop_when_stable": 0.1}, "needs `read_every`"),
        ({"read_every": 2, "stop_when_stable": 0.1, "backend": "vllm"}, "does not work with `backend` 'vllm'"),
        ({"limit": 0}, "`limit` is 0"),
        ({"batch_size": 0}, "`batch_size` is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"seed": -1}, "`seed` is -1; it must be at least 0"),
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"num_critiques": 2}, "`num_critiques` above 1 needs `temperature`"),
        ({"overlong_policy": "cut"}, "`overlong_policy` is 'cut'; use one of error, drop, truncate_prompt"),
        ({"group_column": "topic", "dataset_name": []}, "`group_column` names a column of `dataset_name`"),
        ({"update_card": True, "limit": 3}, "omit `limit`"),
        ({"self_consistency": 4}, "cannot sample at temperature 0.0"),
        ({"self_consistency": 1, "temperature": 1.0}, "`self_consistency` is 1"),
        ({"self_consistency": 4, "self_consistency_temperatures": [0.5, -1.0]}, "at temperature -1.0"),
        ({"self_consistency_temperatures": [0.5]}, "no effect without `self_consistency`"),
        ({"length_column": "swaps"}, "no effect without `self_consistency`"),
        ({"self_consistency": 2, "temperature": 1.0, "length_column": "topic"}, "row 0: `topic` is 'a'"),
        ({"self_consistency": 2, "temperature": 1.0, "length_column": "swap"}, "rename 'swaps' to 'swap'"),
        ({"probes": ["stile"]}, "Did you mean 'style'"),
        ({"probes": ["all"], "probe_rows": 0}, "`probe_rows` is 0"),
        (
            {"probes": ["style"], "combine": "vote", "num_critiques": 2, "temperature": 1.0},
            "altered response has no reward of its own: omit the probes style",
        ),
        ({"probes": ["style"], "paraphrase_column": "reworded"}, "list it in `probes`"),
        ({"probes": ["all"], "paraphrase_column": "swaps"}, "row 0: the paraphrases are 1"),
        ({"probes": ["all"], "dataset_name": [], "benchmarks": []}, "right and wrong responses"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(options, says, models, data, tmp_path, monkeypatch):
    monkeypatch.setattr("cloud_hf.evaluation.scoring_arguments.open_any_model", None)
    options = {
        key: [item.format(data=data) if isinstance(item, str) else item for item in value]
        if isinstance(value, list)
        else value
        for key, value in options.items()
    }
    with pytest.raises(ValueError, match=says):
        evaluate(models, data, tmp_path, **options)


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        ("judge", {"judge_base_url": ["http://127.0.0.1:9"]}),
        ("judge a-b", {"judge_base_url": ["http://127.0.0.1:9"], "judge_model": "a/b"}),
        ("mean(classic,cloud)", {"ensembles": ["mean:classic,cloud"]}),
        ("cascade(classic,cloud)", {"cascade": ["classic,cloud"]}),
    ],
)
def test_a_model_with_the_name_of_a_combination_is_refused(folder, options, models, data, tmp_path):
    (tmp_path / folder).symlink_to(models / "classic")
    names = [str(models / "cloud"), str(models / "classic"), str(tmp_path / folder)]
    options |= {"models": names, "dataset_name": [str(data / "pairs.jsonl")], "output_dir": str(tmp_path / "out")}
    with pytest.raises(ValueError, match="is also the name of the judge, an ensemble or a cascade"):
        evaluate_rewards.main(evaluate_rewards.EvaluationArguments(**options))


def test_options_of_a_comparison(tmp_path):
    for options, says in (
        ({}, "`models` is missing"),
        ({"models": ["m"]}, "`output_dir` is missing"),
        ({"compare": ["a"]}, "`compare` has 1 folder"),
        ({"compare": ["a", "b"], "temperature": 1.0}, "omit `temperature`"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate_rewards.EvaluationArguments(**options)


def test_rows_that_do_not_fit(models, data, tmp_path):
    rows = [pair("hep-go", 1, prompt="word " * 500), pair("hep-go", 2), pair("hep-rust", 3, chosen="word " * 600)]
    files = f"reward_bench={write_rows(tmp_path / 'long.jsonl', rows)}"
    options = {"benchmarks": [files], "dataset_name": [], "best_of_n": []}
    with pytest.raises(ValueError, match=r"reward_bench, row 0 \(id 'hep-go/1'\): \d+ tokens with its critique"):
        evaluate(models, data, tmp_path / "out", "cloud", **options)
    report = evaluate(models, data, tmp_path / "out", "cloud", overlong_policy="truncate_prompt", **options)
    [part] = report["benchmarks"]
    assert (part["rows"], part["dropped"], part["shortened"]) == (2, 1, 1)
    assert "hep-rust" in part["missing"] and "Rows scored with a shortened prompt: 1." in part["notes"]


def test_rows_left_out_as_bad(models, tmp_path):
    """The other rows keep their positions in the file."""
    rows = [{"prompt": f"Is it {n}?", "chosen": "Yes." * (n % 4 > 0), "rejected": "No."} for n in range(8)]
    options = {"benchmarks": [], "best_of_n": [], "dataset_name": [write_rows(tmp_path / "bad.jsonl", rows)]}
    evaluate(models, tmp_path, tmp_path / "out", "classic", bad_rows="drop", **options)
    lines = (tmp_path / "out" / "scores_classic_bad.jsonl.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [1, 2, 3, 5, 6, 7]
    table = parquet.read_table(tmp_path / "out" / "scores_classic.parquet").to_pylist()
    assert [row["row"] for row in table[::2]] == ["1", "2", "3", "5", "6", "7"]


def test_rows_left_out_are_counted_in_the_report(models, data, tmp_path):
    """In sets of all kinds, whether loading or the model's context rejects them."""
    single = {"prompt": "Is it 1?", "response": "Yes, it is.", "critique": "It is short."}
    double = pair("x", chosen_feedback="Good.", rejected_feedback="Bad.")
    problem = {"prompt": "1+1?", "responses": ["2", "3"], "correct": [True, False]}
    files = {
        "dataset_name": [pair("x"), pair("x", chosen=""), pair("x", rejected=" ")],
        "best_of_n": [problem, {**problem, "prompt": None}, {**problem, "correct": [True]}],
        "reference_critiques": [single, {**single, "critique": ""}, {**single, "prompt": None}],
    }
    options = {"benchmarks": [], "bad_rows": "drop"}
    options |= {name: [write_rows(tmp_path / f"{name}.jsonl", rows)] for name, rows in files.items()}
    options["reference_critiques"].append(write_rows(tmp_path / "two.jsonl", [double, {**double, "chosen": ""}]))
    report = evaluate(models, data, tmp_path / "out", "cloud", **options)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Some rows were left out: see the notes on each set." in text and "All rows were scored" not in text
    assert "- cloud: Rows left out because they cannot be used: 2." in text
    assert "- cloud: Problems left out because they cannot be used: 2." in text
    assert "- cloud, reference_critiques.jsonl: Rows left out because they cannot be used: 2." in text
    assert "- cloud, two.jsonl: Rows left out because they cannot be used: 1." in text
    assert report["benchmarks"][0]["bad"] == report["best_of_n"]["best_of_n.jsonl"]["cloud"]["bad"] == 2
    rows = [pair("x"), pair("x", prompt="word " * 600)]
    options = {"dataset_name": [write_rows(tmp_path / "long.jsonl", rows)], "benchmarks": [], "best_of_n": []}
    evaluate(models, data, tmp_path / "long", "cloud", overlong_policy="drop", **options)
    assert "Some rows were left out" in (tmp_path / "long" / "report.md").read_text()


def test_a_run_that_scored_nothing_does_not_bar_its_folder(models, data, tmp_path):
    """The message says to lower `max_new_tokens`, and that must then work."""
    options = {"benchmarks": [], "best_of_n": []}
    with pytest.raises(ValueError, match=r"pairs.jsonl, row 0: \d+ tokens with its critique"):
        evaluate(models, data, tmp_path, "cloud", **options, max_new_tokens=10_000)
    assert evaluate(models, data, tmp_path, "cloud", **options)["results"][0]["n"] == 4


def test_a_model_without_numbers_is_named(models, data, tmp_path):
    model = make_model(models / "base", critique=False)
    torch.nn.init.constant_(model.reward_head.out_proj.weight, 3e38)
    model.save_pretrained(tmp_path / "broken")
    make_tokenizer("llama3").save_pretrained(tmp_path / "broken")
    with pytest.raises(
        ValueError, match=r"rewards that are not finite numbers. The first: reward_bench, row 'hep-go/0', "
    ):
        evaluate(tmp_path, data, tmp_path / "out", "broken")


# ------------------------------------------------------------------------------------------------------ the card


def test_figures_go_into_the_card(models, data, tmp_path, capsys):
    """The second time they replace the first; figures that lack rows are left out."""
    folder = models / "classic"
    for _ in range(2):
        report = evaluate(models, data, tmp_path, "classic", update_card=True)
        assert "1 of 3 headline metrics to" in capsys.readouterr().out
    card = ModelCard.load(folder / "README.md")
    [result] = card.data.eval_results
    assert card.data.license == "mit" and "# A card" in card.text
    assert result.dataset_name == "pairs.jsonl (local files)" and result.metric_name == "accuracy"
    assert result.metric_value == report["results"][0]["accuracy"] and result.dataset_args == {"rows": 4}
    with pytest.raises(ValueError, match="has no card to update"):
        evaluate(models, data, tmp_path, "base", update_card=True)


def test_a_card_tells_settings_apart(models, data, tmp_path):
    """Results with other settings do not replace each other, and the table names the settings that are not the defaults."""
    folder = models / "cloud"
    options = {"benchmarks": [], "best_of_n": [], "num_critiques": 3, "temperature": 1.0, "update_card": True}
    changes = [
        {"combine": "median"}, {"seed": 7}, {"read_every": 2}, {"read_every": 2, "stop_when_stable": 0.5},
        {"overlong_policy": "truncate_prompt"}, {"dtype": "float32"},
    ]  # fmt: skip
    sampling = {"num_critiques": 3, "temperature": 1.0, "max_new_tokens": BUDGET}
    for place, change in enumerate([{}, *changes, {}]):
        evaluate(models, data, tmp_path / str(place), "cloud", **options, **change)
    card = ModelCard.load(folder / "README.md")
    found = [{key: value for key, value in one.metric_args.items() if key != "ci95"} for one in card.data.eval_results]
    assert found == [*({**sampling, **change} for change in changes), sampling]
    assert "| num_critiques 3, temperature 1.0, max_new_tokens 8, combine `median` |" in card.text


def test_a_card_has_every_setting_of_the_journal(models, data, tmp_path, monkeypatch):
    changes = {"backend": "vllm", "vllm_options": '{"quantization": "fp8"}', "dtype": "float16", "seed": 7}
    sampling = {"num_critiques": 3, "temperature": 1.0, "max_new_tokens": BUDGET}
    assert set(SETTINGS) == {*changes, *sampling}
    seen = []
    monkeypatch.setattr(evaluate_rewards, "card_results", lambda _, __, settings, *___: seen.append(settings) or [])
    args = arguments(models, data, tmp_path, "cloud", **changes | sampling)
    evaluate_rewards.update_cards(args, Sets([], {}, {}, {}), {args.models[0]: ModelResults([], {}, {})})
    assert seen == [{**changes, **sampling}]


def test_a_card_is_not_updated_if_rows_are_left_out(models, data, tmp_path, monkeypatch):
    """Bad rows are an error before the model is loaded, over-long rows before the first row is scored."""
    card = (models / "cloud" / "README.md").read_text()
    files = {"bad": [pair("x"), pair("x", chosen="")], "long": [pair("x"), pair("x", prompt="word " * 600)]}
    options = {"benchmarks": [], "best_of_n": [], "bad_rows": "drop", "overlong_policy": "drop", "update_card": True}
    sets = {name: {"dataset_name": [write_rows(tmp_path / f"{name}.jsonl", rows)]} for name, rows in files.items()}
    monkeypatch.setattr(TransformersScorer, "score", None)
    with pytest.raises(
        ValueError, match=r"1 over-long row\(s\) of .*long.jsonl would be left out: shorten or remove them"
    ):
        evaluate(models, data, tmp_path / "long", "cloud", **options, **sets["long"])
    monkeypatch.setattr("cloud_hf.evaluation.scoring_arguments.open_any_model", None)
    with pytest.raises(
        ValueError, match=r"1 bad row\(s\) of .*bad.jsonl would be left out: repair or remove them, or omit"
    ):
        evaluate(models, data, tmp_path / "bad", "cloud", **options, **sets["bad"])
    assert (models / "cloud" / "README.md").read_text() == card


def test_every_benchmark_and_probe_is_named_in_the_help():
    assert all(name in SCRIPT.read_text() for name in (*BENCHMARKS, *NAMES))


def test_classic_models_alone_have_no_self_consistency(models, data, tmp_path):
    with pytest.raises(ValueError, match="none of `models` writes critiques"):
        evaluate(models, data, tmp_path, "classic", self_consistency=2, temperature=1.0)
