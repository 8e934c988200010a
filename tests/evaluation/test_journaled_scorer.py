"""A killed run loses a chunk, and nothing else."""

import re
from dataclasses import replace

import pytest
from models_for_tests import PROMPTS, RESPONSES
from same_scores import assert_same_scores
from servers_for_tests import free_port, serving
from tokenizers_for_tests import make_tokenizer

from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.data.journal import Journal, JournalError
from cloud_hf.evaluation.journaled_scorer import JournaledScorer, open_score_journal
from cloud_hf.evaluation.scoring_arguments import ScoringArguments
from cloud_hf.scores import NotFinite
from cloud_hf.scoring import TransformersScorer, report_scores
from cloud_hf.serving.client import CLoudClient, RewardServerError
from cloud_hf.serving.server.engine import TransformersEngine


CHATS = [f"{prompt} {number}" for number in range(3) for prompt in PROMPTS], RESPONSES * 3
OPTIONS = {"max_new_tokens": 6, "num_critiques": 2, "temperature": 1.0, "seed": 3}


class Recorder:
    """Passes on to a scorer, and keeps what it was asked for."""

    def __init__(self, scorer, change=lambda call, scores: scores):
        self.scorer, self.change, self.calls = scorer, change, []

    def score(self, prompts, responses, on_score=None, **options):
        self.calls.append(list(prompts))
        return report_scores(self.change(len(self.calls), self.scorer.score(prompts, responses, **options)), on_score)


@pytest.fixture
def direct(model):
    return TransformersScorer(model, make_tokenizer("llama3"), batch_size=2)


def without_ids(scores):
    return [replace(score, critique_ids=()) for score in scores]


def journaled(tmp_path, scorer, chunk_size=4):
    return JournaledScorer(scorer, Journal(tmp_path / "journal.jsonl", {}), chunk_size)


def test_scores_are_those_of_the_backend(direct, tmp_path):
    """With the chats' lengths, the batches are the same."""
    critique_format = CritiqueFormat.from_config(direct.model.config, direct.tokenizer)
    tokens = [
        len(critique_format.encode_prefix(prompt, response).input_ids) for prompt, response in zip(*CHATS, strict=True)
    ]
    expected = without_ids(direct.score(*CHATS, **OPTIONS))
    recorder = Recorder(direct)
    scorer = journaled(tmp_path, recorder)
    scores = scorer.score(*CHATS, lengths=tokens, **OPTIONS)
    assert_same_scores(scores, expected)
    assert [len(call) for call in recorder.calls] == [4, 4, 4]
    assert scorer.score(*CHATS, **OPTIONS) == scores and len(recorder.calls) == 3  # now from the journal
    # Other options are other work
    assert scorer.score(*CHATS, max_new_tokens=3) != expected and len(recorder.calls) == 6


def test_numbers_of_tokens_are_journaled_without_the_ids(direct, tmp_path):
    expected = [tuple(map(len, score.critique_ids)) for score in direct.score(*CHATS, **OPTIONS)]
    scorer = journaled(tmp_path, direct)
    for _ in range(2):  # the second time from the journal
        scores = scorer.score(*CHATS, **OPTIONS)
        assert [score.critique_tokens for score in scores] == expected and not any(one.critique_ids for one in scores)


def test_journals_without_numbers_of_tokens_are_read(direct, tmp_path):
    scorer = journaled(tmp_path, direct)
    scores = scorer.score(*CHATS, **OPTIONS)
    scorer.journal.close()
    path = tmp_path / "journal.jsonl"
    path.write_text(re.sub(r',"critique_tokens":\[[^]]*\]', "", path.read_text()))
    assert "critique_tokens" not in path.read_text()
    recorder = Recorder(direct)
    found = journaled(tmp_path, recorder).score(*CHATS, **OPTIONS)
    assert found == [replace(score, critique_tokens=()) for score in scores] and not recorder.calls


def test_an_interrupted_run_says_what_is_kept(direct, tmp_path):
    def interrupt_second(call, scores):
        if call == 2:
            raise KeyboardInterrupt
        return scores

    scorer = journaled(tmp_path, Recorder(direct, interrupt_second))
    with pytest.raises(
        KeyboardInterrupt, match=r"journal\.jsonl keeps 4 of 12 scores; run the same command to resume"
    ):
        scorer.score(*CHATS, max_new_tokens=3)
    recorder = Recorder(direct)
    assert replace(scorer, scorer=recorder).score(*CHATS, max_new_tokens=3)
    assert [len(call) for call in recorder.calls] == [4, 4]


def test_a_failure_loses_one_chunk(direct, tmp_path):
    def fail_third(call, scores):
        if call == 3:
            raise RuntimeError("out of memory")
        return scores

    expected = without_ids(direct.score(*CHATS, **OPTIONS))
    scorer = journaled(tmp_path, Recorder(direct, fail_third), chunk_size=5)
    with pytest.raises(RuntimeError, match="out of memory"):
        scorer.score(*CHATS, **OPTIONS)
    assert len(scorer.journal) == 10
    scorer.journal.close()
    recorder = Recorder(direct)
    found = journaled(tmp_path, recorder, chunk_size=5).score(*CHATS, **OPTIONS)
    assert [score.critiques for score in found] == [score.critiques for score in expected]
    assert [score.rewards for score in found] == [pytest.approx(score.rewards, abs=1e-5) for score in expected]
    assert recorder.calls == [CHATS[0][10:]]


def test_what_a_server_has_answered_outlives_a_row_that_fails(direct, tmp_path):
    class Picky(TransformersEngine):
        def encode(self, prompt, response, *options):
            if prompt == CHATS[0][7]:
                raise RuntimeError("no")
            return super().encode(prompt, response, *options)

    with serving(Picky(direct.model, direct.tokenizer)) as (server, _):
        scorer = journaled(tmp_path, CLoudClient(server.url, max_concurrency=1), chunk_size=12)
        with pytest.raises(RewardServerError, match="Row 7"):
            scorer.score(*CHATS, **OPTIONS)
    assert len(scorer.journal) == 7


def test_equal_chats_are_scored_once(direct, tmp_path):
    recorder = Recorder(direct)
    scores = journaled(tmp_path, recorder).score(["a", "b", "a"], ["x", "x", "x"], max_new_tokens=3)
    assert recorder.calls == [["a", "b"]] and scores[0] == scores[2] != scores[1]


def test_hidden_text_is_told_from_the_journal_too(direct, tmp_path):
    hidden = Recorder(direct, lambda _, scores: [replace(scores[0], response_changed=True), *scores[1:]])
    scorer = journaled(tmp_path, hidden, chunk_size=12)
    for _ in range(2):
        scores = scorer.score(*CHATS, **OPTIONS)
        assert [score.response_changed for score in scores] == [True] + [False] * 11
    assert len(hidden.calls) == 1


class Overflows:
    """A scorer whose rewards of some prompts are not finite."""

    def __init__(self, scorer, prompts):
        self.scorer, self.prompts, self.calls = scorer, prompts, 0

    def score(self, prompts, responses, **options):
        self.calls += 1
        if not self.prompts.isdisjoint(prompts):
            raise NotFinite("a reward is inf")
        return self.scorer.score(prompts, responses, **options)


def test_rewards_that_are_not_finite_are_named_and_all_others_kept(direct, tmp_path):
    scorer = journaled(tmp_path, Overflows(direct, {CHATS[0][4]}))
    with pytest.raises(ValueError, match=r"1 of 12 responses have .* The first: chat 4\. The other scores are kept"):
        scorer.score(*CHATS, names=[f"chat {place}" for place in range(12)], **OPTIONS)
    assert len(scorer.journal) == 11
    recorder = Recorder(direct)
    again = JournaledScorer(recorder, scorer.journal, 4)
    assert len(again.score(*CHATS, **OPTIONS)) == 12 and recorder.calls == [[CHATS[0][4]]]


def test_a_chunk_without_a_finite_reward_ends_the_run(direct, tmp_path):
    overflows = Overflows(direct, set(CHATS[0]))
    with pytest.raises(ValueError, match=r"4 of 12 responses .* The first: row 0\."):
        journaled(tmp_path, overflows).score(*CHATS, **OPTIONS)
    assert overflows.calls == 7  # the chunk, its halves, its four responses


def test_a_journal_records_the_version_that_a_server_serves(model, tmp_path):
    """A server that loaded its model from the Hub reports a commit, which no hash of a folder equals."""
    model.save_pretrained(tmp_path / "rm")
    make_tokenizer("llama3").save_pretrained(tmp_path / "rm")
    name, port = str(tmp_path / "rm"), free_port()
    options = {"backend": "server", "server_url": [f"http://127.0.0.1:{port}"], "output_dir": str(tmp_path)}
    args = ScoringArguments(models=[name], dataset_name=["d"], **options)

    def resume(version):
        engine = TransformersEngine(model, make_tokenizer("llama3"), 2)
        with serving(engine, port=port, model_version=version):
            return open_score_journal("journal", name, "rm", args, ["dtype"])

    with resume("a" * 40) as journal:
        journal.add("00", 1)
    with resume("a" * 40) as journal:
        assert journal["00"] == 1
    with pytest.raises(JournalError, match=f'`served_version` was "{"a" * 40}" and is now "{"b" * 40}"'):
        resume("b" * 40)


def test_scores_of_an_earlier_release_are_not_mixed_with_new_ones(tmp_path):
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "config.json").write_text("{}")
    args = ScoringArguments(models=[str(tmp_path / "rm")], dataset_name=["d"], output_dir=str(tmp_path))
    with open_score_journal("journal", args.models[0], "rm", args, ["dtype"]) as journal:
        journal.add("00", 1)
    journal.path.write_text(journal.path.read_text().replace(',"scoring_version":2', ""))
    with pytest.raises(JournalError, match="`scoring_version` was null and is now 2"):
        open_score_journal("journal", args.models[0], "rm", args, ["dtype"])


def test_a_model_that_was_trained_again_is_said_as_it_is(tmp_path):
    """Its settings cannot be used again: the way on is another folder, or to drop the scores."""
    folder = tmp_path / "rm"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    args = ScoringArguments(models=[str(folder)], dataset_name=["d"], output_dir=str(tmp_path))
    open_score_journal("journal", str(folder), "rm", args, ["dtype"]).close()
    with open_score_journal("journal", str(folder), "rm", args, ["dtype"]) as journal:
        journal.add("00", 1)
    (folder / "config.json").write_text('{"trained": "again"}')
    with pytest.raises(
        JournalError, match=r"rm has changed since it was scored.*Choose another `output_dir`, or remove"
    ):
        open_score_journal("journal", str(folder), "rm", args, ["dtype"])
    args.dtype = "float32"  # another setting differs too
    with pytest.raises(JournalError, match='`dtype` was "auto" and is now "float32"'):
        open_score_journal("journal", str(folder), "rm", args, ["dtype"])
