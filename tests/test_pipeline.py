import json

import pytest
import torch
from datasets import Dataset
from models_for_tests import CRITIQUES, PROMPTS, RESPONSES, make_model, save_language_model
from tokenizers_for_tests import make_tokenizer
from transformers import AutoModelForCausalLM, pipeline

from cloud_hf import CLoudPipeline


BUDGET = 6
CHATS = [
    {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]}
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
]
PAIRS = [{"prompt": prompt, "response": response} for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = save_language_model(tmp_path_factory.mktemp("base"))
    folder = tmp_path_factory.mktemp("reward")
    make_model(base).save_pretrained(folder)
    make_tokenizer("llama3").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(folder):
    return pipeline("critique-reward", model=str(folder), max_new_tokens=BUDGET, device="cpu")


@pytest.fixture(scope="module")
def expected(judge):
    scores = judge.model.score(PROMPTS, RESPONSES, make_tokenizer("llama3"), max_new_tokens=BUDGET)
    assert len({score.reward for score in scores}) == 4
    return scores


def same(outputs, scores):
    assert len(outputs) == len(scores)
    for output, score in zip(outputs, scores, strict=True):
        assert output["critiques"] == list(score.critiques) and output["critique"] == score.critique
        assert output["rewards"] == pytest.approx(list(score.rewards), abs=1e-5)
        assert output["reward"] == pytest.approx(score.reward, abs=1e-5)
        assert output["reward_std"] == pytest.approx(score.reward_std, abs=1e-5)
        assert output["finish_reasons"] == list(score.finish_reasons)


def test_it_gives_what_the_model_gives(judge, expected):
    assert isinstance(judge, CLoudPipeline)
    same([judge(chat) for chat in CHATS], expected)
    same([judge(pair) for pair in PAIRS], expected)
    same([judge(chat["messages"]) for chat in CHATS], expected)
    assert json.loads(json.dumps(judge(CHATS[0]))) == judge(CHATS[0])


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_several_inputs(judge, expected, batch_size):
    same(judge(CHATS, batch_size=batch_size), expected)
    same(judge([chat["messages"] for chat in CHATS], batch_size=batch_size), expected)
    same(list(judge((pair for pair in PAIRS), batch_size=batch_size)), expected)


class Stream(torch.utils.data.Dataset):
    """One of torch's datasets."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize(
    "dataset",
    [
        Stream(CHATS), Stream([chat["messages"] for chat in CHATS]), Dataset.from_list(CHATS), Dataset.from_list(PAIRS),
        Dataset.from_list(CHATS).to_iterable_dataset(), Dataset.from_list(CHATS)["messages"],
    ],
    ids=["torch", "torch_messages", "datasets", "datasets_pairs", "datasets_iterable", "column"],
)  # fmt: skip
def test_datasets(judge, expected, dataset):
    same(list(judge(dataset, batch_size=2)), expected)


def test_a_list_is_judged_in_batches_and_a_generator_as_it_is_read(judge):
    widths = []
    hook = judge.model.trunk.register_forward_hook(
        lambda module, args, kwargs, output: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    judge(CHATS, batch_size=4)
    assert set(widths) == {4}
    read = []
    outputs = judge((read.append(chat) or chat for chat in CHATS), batch_size=2)
    next(outputs)
    hook.remove()
    assert 2 <= len(read) < 4


def test_options(judge):
    options = {"num_critiques": 3, "temperature": 1.0, "seed": 1}
    scores = judge.model.score(PROMPTS, RESPONSES, make_tokenizer("llama3"), max_new_tokens=4, **options)
    same(judge(PAIRS, max_new_tokens=4, batch_size=8, **options), scores)
    other = judge(PAIRS[0], critique_prompt="Judge this:")
    assert other["reward"] != judge(PAIRS[0])["reward"]
    # What a call sets is for that call alone
    assert len(judge(PAIRS[0])["rewards"]) == 1


def test_tools_and_system_messages_reach_the_model(tmp_path):
    model = make_model(save_language_model(tmp_path, family="qwen3"))
    tokenizer = make_tokenizer("qwen3")
    judge = pipeline("critique-reward", model=model, tokenizer=tokenizer, max_new_tokens=BUDGET, device="cpu")
    tools = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}]
    context = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    messages = [*context, {"role": "assistant", "content": "2"}]
    [score] = model.score([{"messages": context, "tools": tools}], ["2"], tokenizer, max_new_tokens=BUDGET)
    same([judge({"messages": messages, "tools": tools})], [score])
    assert judge({"messages": messages})["reward"] != pytest.approx(score.reward, abs=1e-5)


def test_all_fields_of_the_response_reach_the_model(tmp_path):
    model = make_model(save_language_model(tmp_path, family="qwen3"))
    tokenizer = make_tokenizer("qwen3")
    judge = pipeline("critique-reward", model=model, tokenizer=tokenizer, max_new_tokens=BUDGET, device="cpu")
    prompt = [{"role": "user", "content": "1+1?"}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    responses = [
        {"role": "assistant", "content": "I add."},
        {"role": "assistant", "content": "I add.", "tool_calls": [call]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
    ]
    scores = model.score([prompt] * 4, responses, tokenizer, max_new_tokens=BUDGET)
    assert len({score.reward for score in scores}) == 4
    same(judge([{"messages": [*prompt, response]} for response in responses]), scores)
    with pytest.raises(ValueError, match=r"Row 0: .*`mood`"):
        judge({"messages": [*prompt, {**responses[0], "mood": "good"}]})


def test_a_classic_model(classic_model):
    tokenizer = make_tokenizer("llama3")
    judge = pipeline("critique-reward", model=classic_model, tokenizer=tokenizer, device="cpu")
    same(judge(CHATS), classic_model.score(PROMPTS, RESPONSES, tokenizer))


def test_no_inputs(judge):
    assert judge([]) == []


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ("What?", r"Row 0: The input is 'What\?'; give \{\"messages\""),
        ([CHATS[0], {"text": "x"}], "Row 1: The input is {'text': 'x'}"),
        ([CHATS[0], {"messages": CHATS[0]["messages"], "critique": CRITIQUES[0]}], "Row 1: The input is"),
        ([CHATS[0], {"messages": []}], r"Row 1: `messages` is \[\]"),
        ([CHATS[0], {"messages": CHATS[0]["messages"][:1]}], "Row 1: The last message has the role 'user'"),
        ({"messages": CHATS[0]["messages"][1:]}, "Row 0: .*prompt"),
        ({"messages": [*CHATS[0]["messages"][:1], {"role": "assistant", "content": None}]}, r"Row 0: `response` \(assistant\) has no text `content`"),
        ([PAIRS[0], {"prompt": None, "response": "x"}], "Row 1: `prompt` is None"),
        ([PAIRS[0], {"prompt": "long " * 600, "response": "x"}], r"Row 1: \d+ tokens .* context holds 512"),
    ],
)  # fmt: skip
def test_unusable_inputs_are_named(judge, inputs, says):
    with pytest.raises(ValueError, match=says):
        judge(inputs)


def test_a_stream_says_how_far_it_came(judge):
    outputs = judge((chat for chat in [*CHATS[:3], {"text": "x"}]), batch_size=2)
    assert [next(outputs), next(outputs)]
    with pytest.raises(ValueError, match=r"After 2 inputs: Row 1: The input is \{'text'"):
        next(outputs)


def test_unknown_options_and_other_models_are_refused(judge, base_folder):
    with pytest.raises(TypeError, match="top_k"):
        judge(CHATS[0], top_k=3)
    with pytest.raises(ValueError, match="needs `temperature` above 0"):
        judge(CHATS[0], num_critiques=2)
    language_model = AutoModelForCausalLM.from_pretrained(base_folder)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not a CLoud model"):
        pipeline("critique-reward", model=language_model, tokenizer=make_tokenizer("llama3"), device="cpu")


def test_what_the_pipeline_saves_is_a_model_folder(judge, expected, tmp_path):
    judge.save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    again = pipeline("critique-reward", model=str(tmp_path), max_new_tokens=BUDGET, device="cpu")
    same(again(CHATS), expected)
