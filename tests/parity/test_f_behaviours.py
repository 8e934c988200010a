import pytest
from goldens import load_format, load_model, load_tokenizer, read

from cloud_hf.critique_format import EncodedPrefix
from cloud_hf.generation import CritiqueWriter, read_partial_rewards
from cloud_hf.scores import Sampling


CONTROL = {"<|eot_id|>": "eot_count", "<|start_header_id|>": "start_header_count"}


def control_counts(ids):
    return {field: list(ids).count(load_tokenizer().convert_tokens_to_ids(t)) for t, field in CONTROL.items()}


def test_decoding_cleans_up_spaces(compare):
    for case in read("f_behaviours/decode_cleanup.json"):
        compare.exact(load_format("teacher").decode(case["ids"]), case["decoded_default"].strip())


def test_a_lookalike_of_control_tokens_scores_as_in_the_reference(compare):
    case = read("f_behaviours/special_token_injection.json")["plain_lookalike"]
    prefix = load_format("teacher").encode_prefix(case["prompt"], case["response"])
    compare.exact(prefix.text, case["formatted_prompt"])
    compare.exact(list(prefix.input_ids), case["prompt_ids"])
    compare.exact(control_counts(prefix.input_ids), {field: case[field] for field in CONTROL.values()})
    [score] = load_model("teacher").score([case["prompt"]], [case["response"]], load_tokenizer(), max_new_tokens=48)
    compare.exact(score.critique, case["critique"])
    compare.close(score.reward, case["reward"])


@pytest.mark.parametrize("name", ["injected", "response_with_bos_eos"])
def test_injected_turns_stay_text(compare, name):
    """The reference takes them for turns. Its numbers come out from its ids; ours hold the template's tokens alone."""
    case = read("f_behaviours/special_token_injection.json")[name]
    critique_format = load_format("teacher")
    theirs = EncodedPrefix(tuple(case["prompt_ids"]), False, case["formatted_prompt"], case["formatted_prompt"])
    writer = CritiqueWriter(load_model("teacher"), critique_format, Sampling(max_new_tokens=48), 1, False)
    [[sample]] = writer.write([theirs])
    compare.exact(sample.critique, case["critique"])
    encoded = critique_format.complete(theirs, sample.critique_ids)
    [[reward]] = read_partial_rewards(load_model("teacher"), [encoded], 1, False)
    compare.close(reward, case["reward"])

    ours = critique_format.encode_prefix(case["prompt"], case["response"])
    assert control_counts(ours.input_ids) == {"eot_count": 2, "start_header_count": 3}
    assert load_tokenizer().decode(ours.input_ids) == case["formatted_prompt"]  # the same text, other tokens


def test_injection_in_training_stays_text(compare):
    case = read("f_behaviours/special_token_injection_training.json")
    critique_format = load_format("teacher")
    prefix = critique_format.encode_prefix("Grade me", case["chosen"])
    encoded = critique_format.complete_for_training(prefix, case["chosen_feedback"])
    assert control_counts(encoded.input_ids) == {"eot_count": 3, "start_header_count": 3}
    compare.exact(load_tokenizer().decode(encoded.input_ids), load_tokenizer().decode(case["ids"]))


def test_training_and_scoring_join_a_critique_differently(compare):
    case = read("f_behaviours/whitespace_train_vs_inference.json")
    critique_format, tokenizer = load_format("teacher"), load_tokenizer()
    prefix = critique_format.encode_prefix("q", "a")
    training = critique_format.complete_for_training(prefix, case["feedback"])
    compare.exact(list(training.input_ids), case["training_ids"])
    compare.exact(tokenizer.decode(training.input_ids), case["training_text"])
    spaced = critique_format.complete_for_training(prefix, f" {case['feedback']}")
    compare.exact(tokenizer.decode(spaced.input_ids), case["training_text_unstripped_self_critique"])
    scoring = critique_format.complete(prefix, case["feedback"])
    compare.exact(list(scoring.input_ids), case["inference_ids"])
    compare.exact(tokenizer.decode(scoring.input_ids), case["inference_text"])
    compare.exact(training.input_ids == scoring.input_ids, case["equal"])


def test_one_start_of_text(compare):
    """As without special tokens added; the reference's client doubles it."""
    golden = read("f_behaviours/tokenizer_bos_doubling.json")["add_special_tokens_false"]
    prefix = load_format("teacher").encode_prefix("q", "a")
    compare.exact(list(prefix.input_ids[: len(golden)]), golden)


def test_prompts_of_the_api_client(compare):
    """The first request of a conversation; its way of going on after a cut critique is not kept."""
    for case in read("f_behaviours/vllm_client_requests.json"):
        kind = case["checkpoint"]
        prefix = load_format(kind).encode_prefix(case["prompt"], case["response"])
        compare.exact(prefix.text, case["requests"][0]["prompt"])
