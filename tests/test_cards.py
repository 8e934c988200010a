"""Model cards: the lineage of a whole run, held-out results, and hostile texts."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from models_for_tests import PROMPTS

from cloud_hf.card_results import add_results
from cloud_hf.cards import CLASSIC, CLOUD, CRITIC, Example, inherit, model_card
from cloud_hf.cli import parse
from cloud_hf.commands import convert, merge_adapter, train_classic, train_cloud, train_critique_sft
from cloud_hf.markdown import block, in_code


HOSTILE = "```\n</code>\n# owned | <script>alert(1)</script> `` ~~~"
TRAINING = (
    "--max_steps 1 --logging_steps 1 --use_cpu --bf16 False --report_to none --per_device_train_batch_size 2 --save_strategy no --max_length 400 "
    "--lr_scheduler_type cosine"
)


def do(command, words):
    command.main(*parse(command.ARGUMENTS, [*words.split(), *getattr(command, "FIXED_OPTIONS", ())]))


@pytest.fixture(scope="module")
def run(base_folder, tmp_path_factory):
    """base -> SFT -> CLoud -> adapter -> merged -> converted, there and back, and a classic model of the base."""
    out = tmp_path_factory.mktemp("lineage")
    shutil.copytree(base_folder, out / "base")
    front = {"license": "other", "license_name": "own", "language": ["en", "fr"], "base_model": "org/base"}
    (out / "base/README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# Base\n")
    (out / "data").mkdir()
    row = {"chosen": "It is 42.", "rejected": HOSTILE, "chosen_feedback": "Right.", "rejected_feedback": "Wrong."}
    rows = [{**row, "prompt": HOSTILE}, *({**row, "prompt": prompt} for prompt in PROMPTS)]
    for split in ("train", "test"):
        (out / f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (out / "data/README.md").write_text(
        "---\nlicense: mit\nlanguage: en\nsource_datasets: [org/pairs]\n---\n# Pairs\n"
    )
    data = f"--dataset_name {out}/data {TRAINING} --eval_strategy steps --eval_steps 1"
    sft = f"--model_name_or_path {out}/base --output_dir {out}/sft"
    do(train_critique_sft, f"{data} {sft}")
    do(train_cloud, f"{data} --model_name_or_path {out}/sft --output_dir {out}/cloud --format reference")
    lora = "--use_peft --lora_r 2 --lora_target_modules q_proj v_proj"
    do(train_cloud, f"{data} --model_name_or_path {out}/cloud --output_dir {out}/adapter {lora}")
    do(merge_adapter, f"--model_name_or_path {out}/adapter --output_dir {out}/merged")
    convert.main([f"{out}/merged", f"{out}/published", "--base_model_name_or_path", f"{out}/base"])
    convert.main([f"{out}/published", f"{out}/native"])
    do(train_classic, f"{data} --model_name_or_path {out}/base --output_dir {out}/classic")
    return out


STEPS = ["sft", "cloud", "adapter", "merged", "published", "native", "classic"]


@pytest.mark.parametrize("step", STEPS)
def test_every_card_names_base_licence_and_data(run, step):
    card = ModelCard.load(run / step / "README.md")
    data = card.data
    assert (data.base_model, data.license, data.to_dict()["license_name"]) == ("org/base", "other", "own")
    assert (data.language, data.datasets) == (["en"], ["org/pairs"])
    expected = {"sft": "text-generation", "classic": "text-classification"}.get(step)
    assert data.pipeline_tag == expected and "cloud-hf" in data.tags
    assert data.to_dict().get("base_model_relation") == ("adapter" if step == "adapter" else None)
    assert str(run) not in card.content and "SchedulerType" not in card.content
    headings = re.findall(r"^## (.+)$", card.text, re.MULTILINE)
    trained = ["Training"] if step in ("sft", "cloud", "adapter", "classic") else []
    assert headings == ["Use", "Evaluation", *trained, "Serve", "Limits", "Citation"]
    assert "2408.11791" in card.text and "these languages: en." in card.text


def test_each_card_names_what_it_was_made_from(run):
    parents = {
        "sft": "base",
        "cloud": "sft",
        "adapter": "cloud",
        "merged": "adapter",
        "published": "merged",
        "native": "published",
    }
    for child, parent in parents.items():
        about = ModelCard.load(run / child / "README.md").text.partition("## Use")[0]
        assert f"`{parent}`" in about, child


@pytest.mark.parametrize("step", ["sft", "cloud", "adapter", "classic"])
def test_the_example_is_a_training_row_with_the_models_output(run, step):
    """The hostile first row, too, stays code."""
    text = ModelCard.load(run / step / "README.md").text
    assert "The example is a row from the training data." in text and repr(HOSTILE)[:20] in text
    assert "<script>" not in _outside_code(text) and "# owned" not in re.findall(
        r"^#+ .*$", _outside_code(text), re.MULTILINE
    )
    assert ("The model writes" in text) == (step != "classic")
    assert bool(re.search(r"reward (is|at its end is) -?\d", text)) == (step != "sft")


def _outside_code(text):
    text = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)


@pytest.mark.parametrize("step", ["cloud", "classic"])
def test_results_are_held_out_and_losses_of_training_are_named_so(run, step):
    card = ModelCard.load(run / step / "README.md")
    [result] = card.data.eval_results
    low, high = result.metric_args["ci95"]
    assert result.dataset_args == {"rows": 5} and low <= result.metric_value <= high and low < high
    evaluation, _, training = card.text.partition("## Training")
    assert "| `data, split test` | `accuracy` |" in evaluation and "pairwise_loss" in evaluation
    assert "on training rows: loss" in training and "accuracy" not in training.partition("## Serve")[0]
    assert ", cosine |" in training
    weight = r"\d[\d.]*" if step == "cloud" else "none: it writes no critiques"
    assert re.search(rf"\| λ \(weight of the critique LM loss\) \| {weight} \|", training)


def test_without_evaluation_there_is_no_result(run):
    assert ModelCard.load(run / "merged/README.md").data.eval_results is None
    assert "Not evaluated on held-out rows" in (run / "merged/README.md").read_text()


def test_the_code_of_a_card_runs(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    for step in ("classic", "published", "sft"):
        code = re.search(
            r"^(`{3,})python\n(.*?)\n\1$", (run / step / "README.md").read_text(), re.MULTILINE | re.DOTALL
        )[2]
        code = code.replace("max_new_tokens=1024", "max_new_tokens=8").replace(
            ", tokenizer)", ", tokenizer, max_new_tokens=8)"
        )
        exec(code, {})
    assert re.search(r"^-?\d+\.\d+", capsys.readouterr().out, re.MULTILINE)


def result(value, **settings):
    return EvalResult(
        task_type="text-classification", dataset_type="org/set", dataset_name="set", metric_type="accuracy", metric_value=value,
        metric_args={**settings, "ci95": [value / 2, (1 + value) / 2]}, dataset_args={"rows": 10},
    )  # fmt: skip


def test_results_replace_their_own_and_keep_other_text(tmp_path):
    card = model_card("m", CLOUD, "It is new.", {})
    (tmp_path / "README.md").write_text(card.content.replace("## Limits", "My own words.\n\n## Limits"))
    for value, temperature in ((0.5, 0.0), (0.75, 1.0), (0.25, 0.0)):
        add_results(tmp_path, [result(value, temperature=temperature)])
    card = ModelCard.load(tmp_path / "README.md")
    assert sorted(found.metric_value for found in card.data.eval_results) == [0.25, 0.75]
    assert card.text.count("| `set` |") == 2 and "| 25.0% | 12.5% to 62.5% | 10 | temperature 0.0 |" in card.text
    assert "Not evaluated" not in card.text and "My own words." in card.text and card.text.count("## Evaluation") == 1


def test_a_foreign_card_gets_a_section(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nText.\n")
    for value in (0.5, 0.75):
        add_results(tmp_path, [result(value)])
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit" and card.text.count("## Evaluation") == 1 and "75.0%" in card.text
    assert card.text.startswith("# Mine\n\nText.")


@pytest.mark.parametrize("kind", [CLOUD, CLASSIC, CRITIC])
def test_hostile_texts_stay_text(kind, tmp_path):
    example = Example(HOSTILE, HOSTILE, HOSTILE, 0.5)
    card = model_card(
        "a`<b>|[x](y)", kind, f"It was trained from {in_code(HOSTILE)}.", {}, example=example, critique_prompt=HOSTILE
    )
    card.save(tmp_path / "README.md")
    outside = _outside_code(ModelCard.load(tmp_path / "README.md").text)
    assert "<script>" not in outside and "</code>" not in outside and not re.search(r"(?<!\\)<b>", outside)
    assert block("````").startswith("`````")


@pytest.mark.parametrize(
    "front", ["license: [1]\nlanguage: {a: b}\nbase_model: ../../etc\ndatasets: [<b>, 4]", "a: [", "- x"]
)
def test_damaged_cards_hand_on_nothing(front, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Base\n")
    assert inherit(str(tmp_path), [str(tmp_path), None, "org/rows"]) == {"datasets": ["org/rows"]}
    assert inherit(str(Path(tmp_path, "none"))) == {}


def test_without_a_base_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("---\nlicense: mit\n---\n# Another project\n")
    assert inherit(None) == inherit("") == {}
