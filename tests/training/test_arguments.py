from copy import deepcopy

import pytest
from datasets import Dataset
from tokenizers_for_tests import TRL_TEMPLATES, make_tokenizer
from trainers_for_tests import make_rows
from trl import ModelConfig, TrlParser

from cloud_hf import CLoudTrainer, CLoudTrainingConfig
from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.training.arguments import DataArguments, model_name, set_chat_template, split_by_prompt


def test_all_rows_of_a_prompt_are_on_one_side():
    rows = Dataset.from_list([{"prompt": f"Question {i % 40}", "number": i} for i in range(120)])
    train, test = split_by_prompt(rows, 0.05)
    assert len(set(test["prompt"])) == 2 and len(test) == 6
    assert not set(train["prompt"]) & set(test["prompt"])
    assert sorted([*train["number"], *test["number"]]) == list(range(120))
    again = split_by_prompt(rows.select(range(119, -1, -1)), 0.05)[1]
    assert set(again["number"]) == set(test["number"])  # by contents, not by order


def test_chats_are_prompts_too():
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": f"{i % 4}"}]} for i in range(8)])
    train, test = split_by_prompt(rows, 0.5)
    assert len(train) == len(test) == 4


@pytest.mark.parametrize("test_size", [0.0, 1.0, 5.0, 0.01, float("nan")])
def test_a_share_that_leaves_a_side_empty(test_size):
    with pytest.raises(ValueError, match="puts all 16 prompts on one side"):
        split_by_prompt(make_rows(16), test_size)


def test_where_evaluation_rows_come_from(tmp_path):
    make_rows(20).to_json(tmp_path / "rows.jsonl")
    args = DataArguments(str(tmp_path / "rows.jsonl"), test_size=0.25)
    train, test = args.load("steps")
    assert (len(train), len(test)) == (15, 5)
    args.eval_dataset_name = str(tmp_path / "rows.jsonl")
    for strategy in ("steps", "no"):
        with pytest.raises(ValueError, match="holds out training rows for evaluation"):
            args.load(strategy)


def test_a_model_folder_that_does_not_exist():
    with pytest.raises(FileNotFoundError, match=r"There is no folder runs/a/base"):
        model_name(ModelConfig("runs/a/base"))


@pytest.mark.parametrize(
    ("name", "family", "theirs"),
    [("llama-3", "llama3", "llama3"), ("chatml", "chatml", "qwen2_5"), ("chatml", "qwen2_5", "qwen2_5")],
)
def test_templates_by_name_are_those_of_the_family(name, family, theirs):
    """Ours are rewrites; chats get the ids of the family's template, and have a critique format."""
    tokenizer, messages = deepcopy(make_tokenizer(family)), [{"role": "system", "content": "Be brief."}]
    tokenizer.chat_template = None
    set_chat_template(tokenizer, name)
    reference = (TRL_TEMPLATES / f"{theirs}.jinja").read_text()
    for role, content in (("user", "Hello?\nYou"), ("assistant", "Hi. 正"), ("user", "Bye"), ("assistant", "So long")):
        messages.append({"role": role, "content": content})
        for prompted in (False, True):
            options = {"add_generation_prompt": prompted, "return_dict": False}
            ours = tokenizer.apply_chat_template(messages, **options)
            assert ours == tokenizer.apply_chat_template(messages, chat_template=reference, **options)
    encoded = CritiqueFormat(tokenizer).encode(messages[:-1], "So long", "Fine.")
    assert tokenizer.decode(encoded.input_ids[-1:]) == {"llama-3": "<|eot_id|>", "chatml": "<|im_end|>"}[name]


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'llama-2'; it must name a Jinja file .* or a family \(chatml, llama-3\)"):
        set_chat_template(make_tokenizer("llama3"), "llama-2")


def test_the_option_may_be_shortened():
    [args] = TrlParser(CLoudTrainingConfig).parse_args_and_config(
        ["--chat_template", "llama-3", "--output_dir", "o", "--use_cpu", "True"]
    )
    assert args.chat_template_path == "llama-3"


def test_the_trainer_takes_a_template_by_name(model, tmp_path):
    tokenizer = deepcopy(make_tokenizer("llama3"))
    tokenizer.chat_template = None
    args = CLoudTrainingConfig(str(tmp_path), chat_template_path="llama-3", use_cpu=True, bf16=False, report_to=[])
    trainer = CLoudTrainer(model, args, train_dataset=make_rows(2), processing_class=tokenizer)
    expected = CritiqueFormat(make_tokenizer("llama3")).encode("x", "y", "Fine.")
    assert trainer.critique_format.encode("x", "y", "Fine.").input_ids == expected.input_ids
    trainer.processing_class.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == tokenizer.chat_template
