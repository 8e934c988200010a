"""Users' rows give training, evaluation and the builders the same prompt and responses, or one error."""

import json

import pytest
from models_for_tests import make_model
from tokenizers_for_tests import make_tokenizer
from trainers_for_tests import make_trainer
from user_rows import FORMS, case

from cloud_hf import CritiqueFormat
from cloud_hf.data.builders.arguments import BuilderArguments
from cloud_hf.data.builders.oracle import judged_messages
from cloud_hf.data.builders.prompts import PromptArguments, open_sources
from cloud_hf.data.critiques import CritiqueBuilder, CritiqueOptions
from cloud_hf.data.preference_rows import SIDES
from cloud_hf.data.row_values import judged_chat, prompt_of, response_of
from cloud_hf.data.rows import load_rows
from cloud_hf.evaluation.benchmarks import preference_pairs
from cloud_hf.evaluation.evaluation_arguments import EvaluationArguments
from cloud_hf.evaluation.scored_sets import load_sets
from cloud_hf.training.arguments import DataArguments
from cloud_hf.training.encoding import encode_pairs


class Readers:
    """Everything that reads preference rows: each returns, for each row, the token ids of both conversations."""

    def __init__(self, base, folder):
        self.model, self.folder = str(folder / "classic"), folder
        model = make_model(base, critique=False)
        model.save_pretrained(self.model)
        make_tokenizer("llama3").save_pretrained(self.model)
        self.trainer = make_trainer(model, folder / "out")
        self.format = self.trainer.critique_format

    def ids(self, prompt, response):
        return list(self.format.encode(*judged_chat(prompt, response)).input_ids)

    def trained(self, name, bad_rows="error"):
        rows, _ = DataArguments(name).load("no")
        self.trainer.args.bad_rows = bad_rows
        found = self.trainer._prepare_dataset(rows, self.trainer.processing_class, self.trainer.args, "train")
        return [[row["chosen_ids"], row["rejected_ids"]] for row in found]

    def evaluated(self, name, bad_rows="error"):
        options = {
            "models": [self.model],
            "dataset_name": [name],
            "output_dir": str(self.folder),
            "bad_rows": bad_rows,
        }
        sets = load_sets(EvaluationArguments(**options, dataset_test_split="train"))
        [found] = sets.fit(self.format, context_length=None, overlong_policy="error", max_new_tokens=1).values()
        return [[self.ids(row.prompt, response) for response in row.responses] for row in found.rows]

    def shown(self, name, bad_rows="error"):
        """In the demo."""
        rows = preference_pairs.load([name], "train")
        return [[self.ids(row.prompt, response) for response in row.responses] for row in rows]

    def criticised(self, name, bad_rows="error"):
        """By the builders of critiques."""
        rows = BuilderArguments(dataset_name=name, output_dir=str(self.folder / "o"), bad_rows=bad_rows).load_pairs()
        builder = CritiqueBuilder(CritiqueFormat(make_tokenizer("llama3")), None, CritiqueOptions())
        for row in rows:
            for side in SIDES:
                asked = judged_messages(row, side)[-1]["content"]
                task = builder.fit(row)
                _, response = judged_chat(task.prompt, task.responses[side])
                assert response in asked
        return [[self.ids(prompt_of(row), response_of(row, side)) for side in SIDES] for row in rows]

    def all(self):
        return [self.trained, self.evaluated, self.shown, self.criticised]


@pytest.fixture(scope="module")
def readers(base_folder, tmp_path_factory):
    return Readers(base_folder, tmp_path_factory.mktemp("readers"))


@pytest.fixture(scope="module")
def expected(readers):
    row = FORMS["text responses"]
    return [[readers.ids(row["prompt"], row[side]) for side in SIDES]]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_to_all_readers(form, readers, expected, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(FORMS[form]))
    for read in readers.all():
        assert read(str(path)) == expected, read.__name__


def test_prompts_are_held_out_in_every_form(tmp_path):
    for row in FORMS.values():
        text = json.dumps(row)
        rows = [text.replace("Name", f"{number}: name") for number in range(4) for _ in range(2)]
        (tmp_path / "rows.jsonl").write_text("\n".join(rows))
        train, test = DataArguments(str(tmp_path / "rows.jsonl"), test_size=0.25).load("steps")
        assert (len(train), len(test)) == (6, 2)


# ------------------------------------------------------------------------------------------ the rows of ../shared/cases

PLAIN = "22_plain.csv"
SAME = ("01_trl_ultrafeedback_implicit.jsonl", "02_h4_ultrafeedback.jsonl", "19_chosen_dict.jsonl", "21_content_parts.jsonl", PLAIN, "23_hf_download", "24_shards")  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_layouts_of_plain_rows(name, readers):
    rows = [["Where is the ball? Cup A.", "A", "D"], ["Say B please.", "B", "C"]]
    right = [[readers.ids(prompt, f"The answer is {one}.") for one in sides] for prompt, *sides in rows]
    for read in readers.all():
        assert read(case(name))[:2] == right, read.__name__


def test_transcripts_are_turns(readers):
    turns = ["Where is the ball? Cup A.", "Which one?", "The first."]
    prompt = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), turns, strict=True)]
    right = [readers.ids(prompt, f"The answer is {one}.") for one in "AD"]
    for read in readers.all():
        assert read(case("03_hh_rlhf.jsonl"))[0] == right, read.__name__


@pytest.mark.parametrize("name", ["05_helpsteer2.jsonl", "08_nectar.jsonl", "41_messages.jsonl", "44_hh_prompt.jsonl"])
def test_rows_without_pairs_are_refused(name, readers):
    for read in readers.all():
        with pytest.raises(ValueError, match=r"needs the column\(s\) .*chosen, rejected"):
            read(case(name))


def test_an_empty_response_is_named_or_left_out(readers):
    path = case("62_empty_rejected.jsonl")
    for read in readers.all():
        with pytest.raises(ValueError, match=r"row 3.*: `rejected` is empty\. Bad rows: 1 of 4"):
            read(path)
    for read in (readers.trained, readers.evaluated, readers.criticised):
        assert len(read(path, bad_rows="drop")) == 3


def encoded(name):
    critique_format = CritiqueFormat(make_tokenizer("qwen3"), critique=False)
    return critique_format, list(encode_pairs(load_rows(case(name)), critique_format, None, "error"))


def test_tool_calls_are_judged_or_refused(readers):
    critique_format, pairs = encoded("60_tool_choice.jsonl")
    for pair in pairs:
        chosen, rejected = (critique_format.decode(pair[f"{side}_ids"]) for side in SIDES)
        assert '"cup": "A"' in chosen and '"cup": "B"' in rejected
    for read in (readers.trained, readers.evaluated):  # a template without calls
        with pytest.raises(ValueError, match=r"tool_calls.* Bad rows: 4 of 4"):
            read(case("60_tool_choice.jsonl"))


def test_arguments_as_text_are_those_as_an_object():
    critique_format, pairs = encoded("61_openai_args.jsonl")
    row = load_rows(case("61_openai_args.jsonl"))[0]
    row["prompt"][1]["tool_calls"][0]["function"]["arguments"] = {"city": "Cairo"}
    right = critique_format.encode(row["prompt"], row["chosen"]).input_ids
    assert pairs[0]["chosen_ids"] == list(right)


def test_reasoning_is_judged_or_refused():
    _, pairs = encoded("63_reasoning_chosen.jsonl")
    assert all(pair["chosen_ids"] != pair["rejected_ids"] for pair in pairs)
    row = load_rows(case("63_reasoning_chosen.jsonl"))[0]
    tokenizer = make_tokenizer("qwen3")
    shown = [
        CritiqueFormat(tokenizer, keep_thinking=True).encode_prefix(row["prompt"], row[side][0]) for side in SIDES
    ]
    assert shown[0].input_ids != shown[1].input_ids
    with pytest.raises(ValueError, match="keep_thinking"):
        CritiqueFormat(tokenizer).encode_prefix(row["prompt"], row["chosen"][0])


@pytest.mark.parametrize("name", ["41_messages.jsonl", "44_hh_prompt.jsonl"])
def test_prompts_of_chats(name, tmp_path):
    column = "messages" if name.startswith("41") else "prompt"
    options = {"output_dir": str(tmp_path), "dataset_name": [case(name)], "prompt_column": column}
    [source] = open_sources(PromptArguments(**options, drop_last_answer=True))
    prompts = [[{"role": "user", "content": f"Explain topic number {number} to me please"}] for number in range(3)]
    assert [prompt.prompt for prompt in source.read()] == prompts
