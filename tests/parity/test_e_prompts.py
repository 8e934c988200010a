from goldens import load_format, read


def test_prompts_of_self_critiques(compare):
    for row in read("e_prompts/self_critique_prompts.json"):
        for side in ("chosen", "rejected"):
            prefix = load_format("teacher").encode_prefix(row["prompt"], row[side])
            compare.exact(prefix.text, row[f"{side}_feedback_prompt"])


def test_conversations(compare):
    """A classic model reads the conversation as the chat template renders it."""
    for case in read("e_prompts/chat_template.json"):
        messages = case["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"]
        prefix = load_format("vanilla").encode_prefix(messages[:1], messages[1]["content"])
        compare.exact(prefix.text, case["text"])
        compare.exact(list(prefix.input_ids), case["ids"])
