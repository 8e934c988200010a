"""Probes run on a tiny model: what is scored, kept, left out and shuffled."""

from collections import Counter
from dataclasses import replace

import pytest
from models_for_tests import PROMPTS, RESPONSES, make_model, save_language_model
from tokenizers_for_tests import make_tokenizer

from cloud_hf.combine_critiques import combine_scores
from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.data.journal import Journal
from cloud_hf.evaluation.journaled_scorer import JournaledScorer
from cloud_hf.evaluation.probes import PROBES, ProbeRow, check_probes, draw_rows, run_probes
from cloud_hf.evaluation.probes.run import NAMES, draw_few
from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.generation import Sample
from cloud_hf.scores import report_scores
from cloud_hf.scoring import Score, TransformersScorer, context_length


BUDGET = 6


class Recorder:
    """Passes on to a scorer, keeps the sizes of its calls, and dies at one of them."""

    def __init__(self, scorer, dies_at=None, noise=0.0):
        self.scorer, self.dies_at, self.noise, self.sizes = scorer, dies_at, noise, []

    def score(self, prompts, responses, **options):
        self.sizes.append(len(prompts))
        if len(self.sizes) == self.dies_at:
            raise KeyboardInterrupt
        return self.scorer.score(prompts, responses, **options)


@pytest.fixture(scope="module", params=["cloud", "classic"])
def scorer(request, tmp_path_factory):
    base = save_language_model(tmp_path_factory.mktemp("base"))
    model = make_model(base, critique=request.param == "cloud")
    return TransformersScorer(model, make_tokenizer("llama3"), batch_size=3)


def rows_of(scorer, count=4) -> list[ProbeRow]:
    rows = [
        BenchmarkRow(
            f"s/{number}", "s", f"{PROMPTS[number % 4]} {number}", (RESPONSES[number % 4], f"No {number}. It is.")
        )
        for number in range(count)
    ]
    scores = iter(
        scorer.score(
            [row.prompt for row in rows for _ in row.responses],
            [response for row in rows for response in row.responses],
            max_new_tokens=BUDGET,
        )
    )
    names = ["one", "two"]
    return [ProbeRow(names[number % 2], row, [next(scores), next(scores)]) for number, row in enumerate(rows)]


def probe(scorer, folder, names=NAMES, inner=None, num_rows=9, limit=None, rows=None, **options):
    critique_format = CritiqueFormat.from_config(scorer.model.config, scorer.tokenizer)
    with Journal(folder / "journal.jsonl", {}) as journal:
        journaled = JournaledScorer(inner or scorer, journal, chunk_size=5)
        return run_probes(
            names, rows or rows_of(scorer), num_rows, journaled, critique_format, batch_size=3, max_new_tokens=BUDGET,
            context_length=limit or context_length(scorer.model.config), sort_by_length=True, **options,
        )  # fmt: skip


def test_all_probes_on_a_model(scorer, tmp_path):
    results = probe(scorer, tmp_path)
    assert [found.name for found in results] == list(NAMES)
    for found in results:
        assert found.measures and found.rows == 4 and found.left_out == 0
        if found.name != "batch":
            assert set(found.by_dataset) == {"one", "two"}
    by_name = {found.name: found for found in results}
    [batch] = [
        measure for measure in by_name["batch"].measures if measure.label == "largest difference, in shuffled batches"
    ]
    assert batch.estimate.value < 1e-3
    [stays] = [found for found in by_name["special_tokens"].measures if found.label == "appended strings stay text"]
    assert stays.estimate.value == 1.0
    for name in ("special_tokens", "forged_critiques", "style"):
        assert by_name[name].measures[0].label.startswith("right pairs lost beyond the control")
    # Each altered chat has the reward that the model gives it by itself
    for row in by_name["forged_critiques"].probed:
        for found in row.variants.values():
            [alone] = scorer.score([found.variant.prompt], [found.variant.response], max_new_tokens=BUDGET)
            assert found.reward == pytest.approx(alone.reward, abs=1e-4)
    table = list(by_name["forged_critiques"].table())
    kinds = 2 * (3 if scorer.model.config.critique else 2)  # each with its control
    assert len(table) == 4 * kinds and {row["response"] for row in table} == {1}


def test_altered_chats_are_combined_as_the_rows_are(scorer, tmp_path):
    """A scorer with three critiques for each chat, whose mean is not their median."""

    class Several:
        def score(self, prompts, responses, on_score, **options):
            rewards = [(0.0, float(len(response)), 4.0 * len(response)) for response in responses]
            found = [Score.of([Sample(reward, "Fine.") for reward in of_chat]) for of_chat in rewards]
            return report_scores(found, on_score)

    rows = [replace(row, scores=combine_scores(row.scores, "median")) for row in rows_of(scorer)]
    results = probe(scorer, tmp_path, ["style", "trivial_answers"], Several(), rows=rows, combine="median")
    altered = [found for result in results for row in result.probed for found in row.variants.values()]
    assert altered and all(found.reward == len(found.variant.response) for found in altered)


def test_a_vote_has_no_rewards_of_altered_chats(scorer, tmp_path):
    says = "`combine` 'vote' compares the responses of a row.* omit the probes style, or"
    with pytest.raises(ValueError, match=says):
        check_probes(["length", "style"], "vote")
    with pytest.raises(ValueError, match=says):
        probe(scorer, tmp_path, ["length", "style"], combine="vote")
    assert check_probes(["batch", "length"], "vote") == ["length", "batch"]


def test_a_killed_run_resumes_to_the_same_figures(scorer, tmp_path):
    folders = [tmp_path / name for name in ("complete", "killed")]
    for folder in folders:
        folder.mkdir()
    complete, killed = folders
    total = Recorder(scorer)
    expected = [found.summary() for found in probe(scorer, complete, inner=total)]
    calls = len(total.sizes)
    for dies_at in (calls // 3, calls // 3):
        with pytest.raises(KeyboardInterrupt):
            probe(scorer, killed, inner=Recorder(scorer, dies_at))
    last = Recorder(scorer)
    results = probe(scorer, killed, inner=last)
    assert len(last.sizes) == calls - 2 * (calls // 3 - 1)
    assert [found.summary() for found in results] == expected


def test_batches_are_alone_in_order_and_shuffled(scorer, tmp_path):
    recorder = Recorder(scorer)
    probe(scorer, tmp_path, ["batch"], recorder)
    assert recorder.sizes == [1] * 8 + [3, 3, 2] + [3, 3, 2]


def test_batches_are_of_all_sets(scorer, tmp_path, monkeypatch):
    """Of few rows each set has its share, and the result says how many they are."""
    monkeypatch.setitem(PROBES, "batch", replace(PROBES["batch"], most_rows=5))
    rows = sorted(rows_of(scorer, 12), key=lambda row: row.dataset)
    recorder = Recorder(scorer)
    [found] = probe(scorer, tmp_path, ["batch"], recorder, rows=rows)
    assert found.rows == 4 and sum(recorder.sizes) == 3 * 4 * 2
    assert Counter(row.dataset for row in draw_few(rows, 5, 0)) == {"one": 2, "two": 2}
    many = [replace(row, dataset=str(number)) for number, row in enumerate(rows)]
    assert len(draw_few(many, 5, 0)) == 5 and draw_few([], 5, 0) == []
    assert "At most 32 unaltered rows" in found.about


def test_a_backend_that_mixes_rows_is_found_out(scorer, tmp_path):
    class Mixed:
        def score(self, prompts, responses, **options):
            scores = scorer.score(prompts, responses, **options)
            return scores[::-1]

    [found] = probe(scorer, tmp_path, ["batch"], Mixed())
    assert all(measure.estimate.value > 0.01 for measure in found.measures if measure.label.startswith("largest"))


def test_chats_that_do_not_fit_are_left_out_and_counted(scorer, tmp_path):
    critique_format = CritiqueFormat.from_config(scorer.model.config, scorer.tokenizer)
    rows = rows_of(scorer)
    longest = max(
        len(critique_format.encode_prefix(row.row.prompt, text).input_ids)
        for row in rows
        for text in row.row.responses
    )
    limit = longest + (BUDGET + 1 if critique_format.critique else 0) + 3
    results = probe(scorer, tmp_path, ["special_tokens", "trivial_answers"], limit=limit, rows=rows)
    assert results[0].left_out > 0 and results[1].left_out < 4 * 11
    kept = sum(len(row.variants) for row in results[0].probed)
    assert kept + results[0].left_out == 4 * 3 * 2


def test_rows_are_drawn_from_each_set(scorer):
    rows = rows_of(scorer, 12)
    drawn = draw_rows(rows, 2, seed=1)
    assert [row.dataset for row in drawn] == ["one"] * 2 + ["two"] * 2 and drawn == draw_rows(rows, 2, seed=1)
    assert any(drawn != draw_rows(rows, 2, seed) for seed in range(2, 9))
    assert len(draw_rows(rows, 100, 0)) == 12


def test_names_of_probes():
    assert check_probes(["all"]) == list(NAMES) and check_probes(["batch", "style"]) == ["style", "batch"]
    assert check_probes([]) == []
    with pytest.raises(ValueError, match=r"no probe 'stile'\. Did you mean 'style'"):
        check_probes(["stile"])
