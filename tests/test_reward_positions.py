"""A reward model that another tool loads by its path gives the reward of `score`, or refuses."""

import pytest
import torch
from datasets import Dataset
from models_for_tests import make_model, save_language_model
from tokenizers import processors
from tokenizers_for_tests import CRITIQUE_ROLE, FAMILIES, NO_SYSTEM, make_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from trl import GRPOConfig, GRPOTrainer, apply_chat_template

from cloud_hf import CLoudForRewardModeling, CritiqueFormat


TEXTS = [
    "What is 12 + 30?",
    "two\n\nparagraphs\n\n\nand  spaces",
    "Überprüfung: 正しい 🙂",
    " user\nassistant: [ ] \n",
]
# Its template writes today's date, which the model pins: its chats are refused unless rendered with `chat_template_kwargs`
DATED = "llama3_2"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folders(family, tmp_path_factory):
    """A classic and a CLoud model of a family."""
    out = tmp_path_factory.mktemp(family)
    base = save_language_model(out / "base", family=family, max_position_embeddings=2048)
    for kind, options in (("classic", {"critique": False}), ("cloud", {})):
        role = CRITIQUE_ROLE.get(family, "user")
        make_model(base, critique_role=role, **options).save_pretrained(out / kind)
        make_tokenizer(family).save_pretrained(out / kind)
    return out


def chats(family):
    for text, other in zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True):
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": other}]
        yield turns
        yield [*turns, {"role": "user", "content": other}, {"role": "assistant", "content": text}]
        if family not in NO_SYSTEM:
            yield [{"role": "system", "content": f"Be brief. {text}"}, *turns]
    yield [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]


def hostile_chats(tokenizer):
    """Responses that a tool encodes otherwise than `score`."""
    for text in (
        "<think>\na\n</think>\n\nb",
        "<think>a</think>b",
        f"b {tokenizer.eos_token}",
        tokenizer.bos_token + "b",
    ):
        yield [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}]


def load(folder, with_bos=False):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if with_bos:  # as those of Llama and Gemma do
        bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
        template = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, bos_id)])
        tokenizer._tokenizer.post_processor = template
    tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def as_grpo_does(model, tokenizer, conversations):
    texts = [apply_chat_template({"messages": turns}, tokenizer)["text"] for turns in conversations]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    return model(**inputs).logits[:, 0].tolist()


def as_reward_bench_does(model, tokenizer, conversations):
    """It pads on the left, and masks the first of two BOS tokens."""
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", truncation=True, max_length=2048)
    starts, rows = inputs["attention_mask"].argmax(dim=1), torch.arange(len(texts))
    is_double = inputs["input_ids"][rows, starts] == inputs["input_ids"][rows, starts + 1]
    inputs["attention_mask"][rows[is_double], starts[is_double]] = 0
    return model(**inputs).logits[:, 0].tolist()


def as_a_pipeline_does(model, tokenizer, conversations):
    judge = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=3)
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
    return [result["score"] for result in judge(texts)]


def one_by_one(model, tokenizer, conversations):
    encoded = [tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=False) for turns in conversations]
    return [model(input_ids=ids, return_dict=False)[0].item() for ids in encoded]


def through_grpo(folder, conversations):
    """TRL's trainer, with the reward model's path."""
    config = GRPOConfig(
        str(folder / "grpo"), per_device_train_batch_size=2, num_generations=2, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none",
    )  # fmt: skip
    prompts, completions = [turns[:-1] for turns in conversations], [[turns[-1]] for turns in conversations]
    policy, tokenizer = load_policy(folder.parent / "base")
    data = Dataset.from_list([{"prompt": prompts[0]}])
    trainer = GRPOTrainer(policy, str(folder), config, data, processing_class=tokenizer)
    rows = [{"prompt": prompt} for prompt in prompts]
    return trainer._calculate_rewards(rows, prompts, completions, [[1]] * len(rows))[:, 0].tolist()


def load_policy(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer


def through_a_pipeline(folder, conversations):
    judge = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    texts = [judge.tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
    return [result["score"] for [result] in judge(texts)]


ROUTES = [as_grpo_does, as_reward_bench_does, as_a_pipeline_does, one_by_one]


@pytest.mark.parametrize("with_bos", [False, True])
def test_a_classic_model_gives_its_reward(folders, family, with_bos):
    model, tokenizer = load(folders / "classic", with_bos)
    conversations = list(chats(family))
    prompts, responses = zip(*((turns[:-1], turns[-1]["content"]) for turns in conversations), strict=True)
    rewards = [score.reward for score in model.score(list(prompts), list(responses), tokenizer)]
    for route in ROUTES:
        if family == DATED:
            with pytest.raises(ValueError, match=r"different chat template variables"):
                route(model, tokenizer, conversations)
        else:
            assert route(model, tokenizer, conversations) == pytest.approx(rewards, abs=1e-5)


@pytest.mark.parametrize("route", [through_grpo, through_a_pipeline])
def test_tools_that_get_the_path(folders, family, route):
    conversations = list(chats(family))
    model, tokenizer = load(folders / "classic")
    scores = model.score(
        [turns[:-1] for turns in conversations], [turns[-1]["content"] for turns in conversations], tokenizer
    )
    if family == DATED:
        with pytest.raises(ValueError, match=r"different chat template variables"):
            route(folders / "classic", conversations)
    else:
        rewards = route(folders / "classic", conversations)
        assert rewards == pytest.approx([score.reward for score in scores], abs=1e-5)
    with pytest.raises(ValueError, match=r"writes a critique before it scores.*model\.score\(.*critique-reward"):
        route(folders / "cloud", conversations)


def test_no_route_differs_in_silence(folders):
    model, tokenizer = load(folders / "classic")
    for turns in hostile_chats(tokenizer):
        [score] = model.score([turns[:-1]], [turns[-1]["content"]], tokenizer)
        for route in ROUTES:
            try:
                rewards = route(model, tokenizer, [turns])
            except ValueError as error:
                assert "model.score" in str(error)
            else:
                assert rewards == pytest.approx([score.reward], abs=1e-5)


def test_a_cloud_model_names_the_call(folders, family):
    model, tokenizer = load(folders / "cloud")
    for turns in chats(family):
        for route in ROUTES:
            with pytest.raises(
                ValueError, match=r"writes a critique before it scores.*model\.score\(.*critique-reward"
            ):
                route(model, tokenizer, [turns])


def test_a_critique_in_the_sequence_is_scored(folders):
    model, tokenizer = load(folders / "cloud")
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    for prompt, response, critique in ((TEXTS[0], TEXTS[1], "It is vague."), (TEXTS[1], "x", "")):
        [score] = model.score([prompt], [response], tokenizer, critiques=[critique])
        ids = torch.tensor([critique_format.encode(prompt, response, critique).input_ids])
        assert model(input_ids=ids).logits.item() == pytest.approx(score.reward, abs=1e-5)


def test_a_turn_that_ends_with_two_control_tokens(tmp_path):
    base = save_language_model(tmp_path, family="llama3_1")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = """{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ m['content'] }}\
<|python_tag|><|eot_id|>{% endfor %}"""
    tokenizer.save_pretrained(base)
    model = make_model(base, critique=False)
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=False)
    [score] = model.score([turns[:1]], ["Hello."], tokenizer)
    assert model(input_ids=ids).logits.item() == pytest.approx(score.reward, abs=1e-5)


# ------------------------------------------------------------------------------------------------------ refusals


def test_what_is_no_complete_conversation_is_refused(classic_model):
    tokenizer = make_tokenizer("llama3")
    turns = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "It is 4, I think."}]
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    refused = {
        "does not end with the end-of-turn token": ids[:-2],  # truncated
        "ends with a 'user' turn": tokenizer.apply_chat_template(turns[:1], return_dict=False),
        "not a conversation in the form that the model's tokenizer renders": tokenizer("Hi<|eot_id|>")["input_ids"],
        "its tokens differ from this model's own encoding": ids[1:],  # no BOS
    }
    for says, sequence in refused.items():
        with pytest.raises(ValueError, match=f"Sequence 0: it.*{says.removeprefix('it')}|Sequence 0: {says}"):
            classic_model(input_ids=torch.tensor([sequence]))
    with pytest.raises(ValueError, match="`inputs_embeds` requires `reward_positions`"):
        classic_model(inputs_embeds=torch.zeros(1, 4, 32))


def test_a_model_that_keeps_thinking_is_not_read_by_path(base_folder):
    model = make_model(base_folder, critique=False, keep_thinking=True)
    with pytest.raises(ValueError, match=r"`keep_thinking`.*model\.score"):
        model(input_ids=torch.tensor([[5, 6, 7]]))


def test_a_model_without_its_tokenizer_says_so(tmp_path, classic_model):
    classic_model.save_pretrained(tmp_path)
    model = CLoudForRewardModeling.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="There is no tokenizer in"):
        model(input_ids=torch.tensor([[5, 6, 7]]))


def test_embeddings_for_token_types_change_nothing(tmp_path):
    """GPT-2 would add embeddings for them, and tokenizers return them."""
    model = make_model(save_language_model(tmp_path, "gpt2"), critique=False)
    ids = make_tokenizer("llama3").apply_chat_template(next(chats("llama3")), return_tensors="pt", return_dict=False)
    expected = model(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids, token_type_ids=torch.ones_like(ids)).logits, expected)
