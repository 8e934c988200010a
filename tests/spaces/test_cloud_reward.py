"""The module is loaded from its folder, as users do, without a network; the models are real but tiny."""

import statistics
from pathlib import Path

import evaluate
import pandas as pd
import pytest
from models_for_tests import make_model, save_language_model, tiny_text_config
from servers_for_tests import make_engine, serving
from tokenizers_for_tests import make_tokenizer
from transformers import AutoModelForSequenceClassification

from cloud_hf import TransformersScorer
from cloud_hf.loading import load_reward_model
from cloud_hf.scalar_models import ScalarScorer, load_scalar_model


FOLDER = str(Path(__file__).parents[2] / "spaces" / "cloud_reward")
TEXTS = ["What is 2+2?", "Name a river.", "Say hi."]
ANSWERS = ["4", "The Nile.", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A CLoud and a classic model on disk."""
    base = save_language_model(tmp_path_factory.mktemp("base"))
    folders = {}
    for name, critique in (("cloud", True), ("classic", False)):
        folders[name] = str(tmp_path_factory.mktemp(name))
        make_model(base, critique=critique).save_pretrained(folders[name])
        make_tokenizer("llama3").save_pretrained(folders[name])
    return folders


def load(cache, **options):
    return evaluate.load(FOLDER, cache_dir=str(cache), **options)


def scorer_of(folder):
    return TransformersScorer(*load_reward_model(folder))


def test_the_numbers_are_the_librarys(tmp_path, folders):
    options = {"num_critiques": 3, "temperature": 1.0, "max_new_tokens": 6, "seed": 5}
    results = load(tmp_path).compute(prompts=TEXTS, predictions=ANSWERS, model=folders["cloud"], **options)
    scores = scorer_of(folders["cloud"]).score(TEXTS, ANSWERS, **options)
    assert results["rewards"] == pytest.approx([score.reward for score in scores], abs=1e-5)
    assert results["mean_reward"] == statistics.fmean(results["rewards"])
    assert results["critiques"] == [list(score.critiques) for score in scores]
    assert results["reward_stds"] == pytest.approx([score.reward_std for score in scores], abs=1e-5)
    assert min(results["reward_stds"]) > 0 and len(set(results["rewards"])) == 3
    assert {reason for reasons in results["finish_reasons"] for reason in reasons} <= {"stop", "length"}


def test_a_classic_model(tmp_path, folders):
    results = load(tmp_path).compute(prompts=TEXTS, predictions=ANSWERS, model=folders["classic"], batch_size=2)
    scores = scorer_of(folders["classic"]).score(TEXTS, ANSWERS)
    assert results["rewards"] == pytest.approx([score.reward for score in scores], abs=1e-5)
    assert results["critiques"] == [[""]] * 3 and results["reward_stds"] == [0.0] * 3


def test_a_scalar_model(tmp_path):
    name = str(tmp_path / "scalar")
    AutoModelForSequenceClassification.from_config(tiny_text_config(num_labels=1)).save_pretrained(name)
    make_tokenizer("llama3").save_pretrained(name)
    results = load(tmp_path).compute(prompts=TEXTS, predictions=ANSWERS, model=name, batch_size=2)
    scores = ScalarScorer(*load_scalar_model(name)).score(TEXTS, ANSWERS)
    assert results["rewards"] == pytest.approx([score.reward for score in scores], abs=1e-5)


def test_chats(tmp_path, folders):
    """Several turns and a system message reach the scorer unchanged."""
    turns = [("system", "Be brief."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "Name a river.")]
    chat = [{"role": role, "content": content} for role, content in turns]
    chats, answers = [chat, chat[1:2], chat[1:]], ANSWERS
    results = load(tmp_path).compute(prompts=chats, predictions=answers, model=folders["classic"])
    scores = scorer_of(folders["classic"]).score(chats, answers)
    assert results["rewards"] == pytest.approx([score.reward for score in scores], abs=1e-5)
    assert len(set(results["rewards"])) == 3


def test_behind_a_server(tmp_path, folders):
    model, _ = load_reward_model(folders["cloud"])
    rows = {"prompts": TEXTS, "predictions": ANSWERS, "model": folders["cloud"], "max_new_tokens": 6}
    with serving(make_engine(model)) as (running, _):
        results = load(tmp_path).compute(**rows, backend="server", server_url=running.url)
    here = load(tmp_path).compute(**rows)
    assert results["critiques"] == here["critiques"]
    assert results["rewards"] == pytest.approx(here["rewards"], abs=1e-5)


def test_batches_and_single_rows_add_up(tmp_path, folders):
    metric = load(tmp_path, model=scorer_of(folders["cloud"]))
    metric.add_batch(prompts=TEXTS[:2], predictions=ANSWERS[:2])
    metric.add(prompts=TEXTS[2], prediction=ANSWERS[2])
    added = metric.compute(max_new_tokens=6)
    whole = metric.compute(prompts=TEXTS, predictions=ANSWERS, max_new_tokens=6)
    assert added["critiques"] == whole["critiques"]
    assert added["rewards"] == pytest.approx(whole["rewards"], abs=1e-5)


def test_columns_of_a_filtered_table(tmp_path, folders):
    table = pd.DataFrame({"prompts": TEXTS, "predictions": ANSWERS})
    metric = load(tmp_path, model=scorer_of(folders["classic"]))
    filtered = metric.compute(**table[table["predictions"] != ANSWERS[0]])  # lacks the label 0
    assert filtered == metric.compute(prompts=TEXTS[1:], predictions=ANSWERS[1:])


def test_combined(tmp_path, folders):
    """Two models judge the same responses."""
    modules = {name: load(tmp_path / name, model=scorer_of(folder)) for name, folder in folders.items()}
    both = evaluate.combine(modules)
    both.add_batch(prompts=TEXTS, predictions=ANSWERS)
    results = both.compute(max_new_tokens=6)
    alone = modules["cloud"].compute(prompts=TEXTS, predictions=ANSWERS, max_new_tokens=6)
    assert results["cloud_rewards"] == pytest.approx(alone["rewards"], abs=1e-5)
    assert results["cloud_critiques"] == alone["critiques"] and results["classic_critiques"] == [[""]] * 3
    assert results["cloud_mean_reward"] != results["classic_mean_reward"]


def test_bad_input(tmp_path, folders):
    rows = {"prompts": TEXTS, "predictions": ANSWERS}
    with pytest.raises(ValueError, match="No `model` is given"):
        load(tmp_path).compute(**rows)
    with pytest.raises(ValueError, match="Mismatch in the number of predictions"):
        load(tmp_path).compute(prompts=TEXTS, predictions=["4"], model=folders["cloud"])
    with pytest.raises(ValueError, match="`backend` is 'onnx'"):
        load(tmp_path).compute(**rows, model=folders["cloud"], backend="onnx")
    with pytest.raises(TypeError, match="temprature"):
        load(tmp_path).compute(**rows, model=folders["cloud"], temprature=0.5)
    with pytest.raises(ValueError, match="dtype: these options apply to a model given by name"):
        load(tmp_path).compute(**rows, model=scorer_of(folders["classic"]), dtype="float32")
    with pytest.raises(ValueError, match="Row 1: `prompt` is empty"):
        load(tmp_path).compute(prompts=["a", "", "b"], predictions=ANSWERS, model=folders["cloud"])


CHAT = [{"role": "user", "content": "Hi!"}]


@pytest.mark.parametrize(
    ("prompts", "predictions", "says"),
    [
        ([], [], r"`prompts` is \[\]; give a list"),
        (["a"], None, "`predictions` is None; give a list"),
        ("ab", ["4", "5"], "`prompts` is 'ab'; give a list"),
        (["a", CHAT], ["4", "5"], "Row 1: text and chats are mixed"),
        ([CHAT, "a"], ["4", "5"], "Row 1: text and chats are mixed"),
        ([[{**CHAT[0], "name": "Ann"}]], ["4"], "Row 0: `prompt` is .* a list of messages with `role` and `content`"),
        (["a", None], ["4", "5"], "Row 1: `prompt` is None; give text"),
        (["a", "b"], ["4", 5], "Row 1: `prediction` is 5; give text"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, folders, prompts, predictions, says):
    """`datasets` would turn most of these into strings, and the model would judge those."""
    metric = load(tmp_path, model=scorer_of(folders["classic"]))
    with pytest.raises(ValueError, match=says):
        metric.compute(prompts=prompts, predictions=predictions)
    assert len(metric.compute(prompts=["a"], predictions=["4"])["rewards"]) == 1  # nothing of that is left


def test_one_row_is_checked_too(tmp_path, folders):
    metric = load(tmp_path, model=scorer_of(folders["classic"]))
    with pytest.raises(ValueError, match="Row 0: `prediction` is 4; give text"):
        metric.add(prompts="What is 2+2?", prediction=4)
    both = evaluate.combine({"one": metric})
    both.add(prompts=TEXTS[0], prediction=ANSWERS[0])
    assert len(both.compute()["rewards"]) == 1
