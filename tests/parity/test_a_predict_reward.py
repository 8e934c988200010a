import pytest
import torch
from goldens import folder, load_format, load_model, load_tokenizer, read
from safetensors.torch import load_file

from cloud_hf import CLoudForRewardModeling


KINDS = ("teacher", "vanilla")
FINISH_REASONS = {"eot": "stop", "eos": "stop", "max_tokens": "length"}


def predict(kind, samples, golden=None, batch_size=1, tokenizer=None, model=None, **kwargs):
    return (model or load_model(kind)).score(
        [sample["prompt"] for sample in samples],
        [sample["response"] for sample in samples],
        tokenizer or load_tokenizer(kind),
        max_new_tokens=kwargs.pop("max_new_tokens", 48),
        batch_size=batch_size,
        **kwargs,
    )


def compare_sample(compare, sample, score):
    """What was written, and its reward."""
    compare.exact(score.critique, sample["critique"], sample)
    compare.close(score.reward, sample["reward"], sample)
    if "finish" in sample:
        compare.exact(score.finish_reasons[0], FINISH_REASONS[sample["finish"]])
        # The reference keeps generating after an end of sequence, and cuts the critique there later
        ids = score.critique_ids[0]
        compare.exact(list(ids), sample["generated_ids"][: len(ids)])


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_spelled_as_the_reference_spells_them(compare, kind):
    for sample in read(f"a_predict_reward/{kind}.json")["samples"]:
        prefix = load_format(kind).encode_prefix(sample["prompt"], sample["response"])
        compare.exact(prefix.text, sample["formatted_prompt"])
        compare.exact(list(prefix.input_ids), sample["prompt_ids"])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_size_gives_the_numbers_of_batch_one(compare, kind, batch_size):
    samples = read(f"a_predict_reward/{kind}.json")["samples"]
    for sample, score in zip(samples, predict(kind, samples, batch_size=batch_size), strict=True):
        compare_sample(compare, sample, score)
        for batch in ("batch4", "batch16"):
            if sample[batch]["critique_equals_single"]:
                compare.close(score.reward, sample[batch]["reward"])


@pytest.mark.parametrize("kind", KINDS)
def test_predict_reward_is_the_call_of_the_reference(compare, kind):
    samples = read(f"a_predict_reward/{kind}.json")["samples"]
    prompts, responses = [s["prompt"] for s in samples], [s["response"] for s in samples]
    rewards, critiques = load_model(kind).predict_reward(prompts, responses, load_tokenizer(kind), max_tokens=48)
    compare.close(rewards, [sample["reward"] for sample in samples])
    compare.exact(critiques, [sample["critique"] for sample in samples])


def test_the_reward_is_read_from_the_critiques_text(compare):
    samples = read("a_predict_reward/teacher.json")["samples"]
    critique_format = load_format("teacher")
    for sample, score in zip(samples, predict("teacher", samples), strict=True):
        prefix = critique_format.encode_prefix(sample["prompt"], sample["response"])
        scored = critique_format.complete(prefix, score.critique_ids[0])
        compare.exact(list(scored.input_ids), sample["scored_ids"])
        compare.exact(list(critique_format.complete(prefix, sample["critique"]).input_ids), sample["scored_ids"])
        compare.exact(load_tokenizer().decode(scored.input_ids), sample["scored_text"])
        compare.exact(len(score.critique_ids[0]), sample["critique_token_count"])
        written = [*prefix.input_ids, *score.critique_ids[0], critique_format.end_token_id]
        compare.exact(written == sample["scored_ids"], sample["generated_then_scored_ids_equal"])


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states(compare, kind):
    golden = load_file(folder() / "a_predict_reward/last_hidden.safetensors")[f"{kind}_last_hidden"]
    for sample, vector in zip(read(f"a_predict_reward/{kind}.json")["samples"], golden, strict=True):
        with torch.no_grad():
            hidden = load_model(kind).trunk(torch.tensor([sample["scored_ids"]])).last_hidden_state[0, -1]
        compare.close(hidden, vector, count=1)


def test_a_short_budget_and_another_critique_prompt(compare):
    samples = read("a_predict_reward/teacher.json")["samples"]
    variants = read("a_predict_reward/teacher_variants.json")
    short = variants["max_tokens_6"]
    for sample, score in zip(short, predict("teacher", samples[: len(short)], max_new_tokens=6), strict=True):
        compare_sample(compare, sample, score)
    other = variants["alt_critique_prompt"]
    options = {"critique_prompt": other["critique_prompt"], "max_new_tokens": other["max_tokens"]}
    scores = predict("teacher", samples[: len(other["samples"])], **options)
    for sample, score in zip(other["samples"], scores, strict=True):
        compare.exact(score.critique, sample["critique"])
        compare.close(score.reward, sample["reward"])


def test_temperature_samples_where_the_reference_stays_greedy(compare):
    samples = read("a_predict_reward/teacher.json")["samples"]
    golden = read("a_predict_reward/teacher_variants.json")["temp_1.0_same_as_greedy"]
    samples = samples[: len(golden["rewards"])]
    compare.close([score.reward for score in predict("teacher", samples)], golden["rewards"])
    warm = predict("teacher", samples, temperature=1.0, seed=0)
    assert [score.critique for score in warm] != [sample["critique"] for sample in samples]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_side_and_pad_token_do_not_matter(compare, kind):
    samples = read(f"a_predict_reward/{kind}.json")["samples"][:4]
    golden = read(f"a_predict_reward/{kind}_variants.json")["RIGHT_padding_batch4_DO_NOT_MATCH"]
    tokenizer = load_tokenizer.__wrapped__(kind)
    for side, pad in (("right", "<|end_of_text|>"), ("left", "<|reserved_special_token_0|>"), ("right", None)):
        tokenizer.padding_side, tokenizer.pad_token = side, pad
        scores = predict(kind, samples, batch_size=4, tokenizer=tokenizer)
        compare.close([score.reward for score in scores], golden["left_padding_rewards"])
        compare.exact([score.critique for score in scores], [sample["critique"] for sample in samples])


def test_a_long_companion_in_the_batch_changes_nothing(compare):
    golden = read("a_predict_reward/batch_divergence.json")
    for example in golden["examples"]:
        prompts, responses = zip(example["pair"], example["companion"], strict=True)
        for batch_size in (1, 2):
            options = {"max_new_tokens": golden["max_tokens"], "batch_size": batch_size}
            score, _ = load_model("teacher").score(list(prompts), list(responses), load_tokenizer(), **options)
            compare.exact(score.critique, example["single"]["critique"])
            compare.close(score.reward, example["single"]["reward"])


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_rewards_of_given_text_move_by_rounding_only(compare, kind):
    """Greedy critiques of these random models differ in bfloat16, in the reference as here."""
    samples = read(f"a_predict_reward/{kind}.json")["samples"]
    model = CLoudForRewardModeling.from_pretrained(
        folder() / f"ckpt_{kind}", base_model_name_or_path=str(folder() / "base_model"), dtype=torch.bfloat16
    )
    assert {weight.dtype for weight in model.language_model.parameters()} == {torch.bfloat16}
    given = {"critiques": [sample["critique"] for sample in samples]} if kind == "teacher" else {}
    scores = predict(kind, samples, model=model, batch_size=4, **given)
    compare.close([score.reward for score in scores], [sample["reward"] for sample in samples], atol=0.15)
