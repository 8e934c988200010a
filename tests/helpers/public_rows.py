"""Three rows of each public preference set, made by hand from its documented columns. Ratings differ by 2 where there are any."""


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PROMPTS = ["Where is the ball?", "Name a cup.", "Say B please."]
GOOD, BAD = "It is under B.", "I do not know."


def completion(model, text, rating):
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    annotations = {aspect: {"Rating": str(rating), "Rationale": "So it is."} for aspect in aspects}
    return {
        "model": model, "response": text, "principle": "helpfulness", "critique": "Fine.", "annotations": annotations,
        "overall_score": rating * 2.0, "fine-grained_score": float(rating), "custom_system_prompt": "Be helpful.",
    }  # fmt: skip


def answer(text, rank):
    return {"answer": text, "model": f"model-{rank}", "rank": float(rank)}


def chat(prompt, text):
    return [user(prompt), assistant(text)]


# By set: the layout that is recognised, and a function that makes a row
SETS = {
    "UltraFeedback": ("ultrafeedback", lambda prompt: {
        "source": "evol_instruct", "instruction": prompt, "models": ["a", "b", "c"], "correct_answers": ["None"], "incorrect_answers": ["None"],
        "completions": [completion("a", BAD, 2), completion("b", GOOD, 4), completion("c", "Who asks?", 3)],
    }),
    "UltraFeedback binarized": ("ultrafeedback_binarized", lambda prompt: {
        "prompt": prompt, "prompt_id": f"id of {prompt}", "chosen": chat(prompt, GOOD), "rejected": chat(prompt, BAD),
        "messages": chat(prompt, GOOD), "score_chosen": 8.0, "score_rejected": 6.0,
    }),
    "HelpSteer 2": ("helpsteer2", lambda prompt: [
        {"prompt": prompt, "response": text, "helpfulness": rating, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 1}
        for text, rating in ((BAD, 1), (GOOD, 3))
    ]),
    "HelpSteer 2 preference": ("helpsteer2_preference", lambda prompt: {
        "split": "train", "prompt": f"Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\n{prompt}", "response_1": GOOD, "response_2": BAD,
        "preference_strength": -2, "preference_statement": "Response 1 is better.", "preference_elaboration": "It says where.",
        "three_most_similar_preferences": [{"statement": "Better.", "elaboration": "So.", "strength": -2}],
        "all_preferences_unprocessed": [{"statement": "Better.", "elaboration": "So.", "strength": -2}],
    }),
    "HelpSteer 3": ("helpsteer3", lambda prompt: {
        "domain": "general", "language": "english", "context": [user("Hi"), assistant("Hello."), user(prompt)], "response1": BAD,
        "response2": GOOD, "overall_preference": 2,
        "individual_preference": [{"score": 2, "reasoning": "It says where.", "feedback1": "No.", "feedback2": "Yes."}],
    }),
    "Nectar": ("nectar", lambda prompt: {
        "prompt": f"\n\nHuman: {prompt}\n\nAssistant: ", "answers": [answer(GOOD, 1), answer("Who asks?", 2), answer(BAD, 3)],
        "turns": 1, "num_responses": 3, "source": ["lmsys-chat-1m"], "good_natured": True,
    }),
    "PKU-SafeRLHF": ("pku_saferlhf", lambda prompt: {
        "prompt": prompt, "response_0": BAD, "response_1": GOOD, "prompt_source": "Alpaca3-70B", "response_0_source": "Alpaca-7B",
        "response_1_source": "Alpaca-7B", "is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 0,
    }),
    "HH-RLHF": ("hh_rlhf", lambda prompt: {
        side: f"\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: {prompt}\n\nAssistant: {text}"
        for side, text in (("chosen", GOOD), ("rejected", BAD))
    }),
    "Skywork-Reward-Preference": ("skywork", lambda prompt: {
        "chosen": chat(prompt, GOOD), "rejected": chat(prompt, BAD), "source": "magpie_pro",
    }),
    "Tulu 3": ("tulu3", lambda prompt: {
        "id": f"id of {prompt}", "source": "ai2-adapt-dev/uf", "prompt": prompt, "chosen": chat(prompt, GOOD), "rejected": chat(prompt, BAD),
    }),
    "Chatbot Arena": ("arena", lambda prompt: {
        "question_id": f"id of {prompt}", "model_a": "vicuna-13b", "model_b": "koala-13b", "winner": "model_b", "judge": "arena_user_1",
        "conversation_a": [*chat("Hi", "Hm."), *chat(prompt, BAD)], "conversation_b": [*chat("Hi", "Hello."), *chat(prompt, GOOD)],
        "turn": 2, "anony": True, "language": "English", "tstamp": 1682351591.1,
    }),
    "Chatbot Arena 55k": ("arena_55k", lambda prompt: {
        "id": len(prompt), "model_a": "gpt-4", "model_b": "koala-13b", "prompt": f'["{prompt}"]', "response_a": f'["{GOOD}"]',
        "response_b": f'["{BAD}"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
    }),
    "ShareGPT ranking": ("sharegpt", lambda prompt: {
        "conversations": [{"from": "human", "value": prompt}], "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    }),
    "LLaMA-Factory ranking": ("alpaca", lambda prompt: {
        "instruction": "Answer.", "input": prompt, "chosen": GOOD, "rejected": BAD,
    }),
    "RewardBench": ("reward_bench", lambda prompt: {
        "prompt": prompt, "chosen": GOOD, "chosen_model": "GPT4", "rejected": BAD, "rejected_model": "alpaca", "subset": "alpacaeval-easy",
        "id": len(prompt),
    }),
    "Orca DPO pairs": ("orca", lambda prompt: {"system": "Be kind.", "question": prompt, "chosen": GOOD, "rejected": BAD}),
    "Argilla's Orca DPO pairs": ("orca_distilabel", lambda prompt: {
        "system": "", "input": prompt, "chosen": GOOD, "rejected": BAD, "generations": [BAD, GOOD], "order": ["rejected", "chosen"],
        "labelling_model": "gpt-4", "rating": [7.0, 9.0], "rationale": "So it is.", "status": "swapped", "chosen_score": 9.0,
    }),
    "Truthy DPO": ("system", lambda prompt: {
        "id": f"id of {prompt}", "source": "truthy", "system": "Be kind.", "prompt": prompt, "chosen": GOOD, "rejected": BAD,
    }),
    "Argilla's DPO mix": ("dpo_mix", lambda prompt: {
        "dataset": "capybara", "chosen": chat(prompt, GOOD), "rejected": chat(prompt, BAD), "chosen_rating": 5.0, "rejected_rating": 3.0,
    }),
    "Capybara DPO": ("capybara", lambda prompt: {
        "source": "Airoboros", "conversation": [{"input": prompt, "output": "So."}], "prompt": chat(prompt, "")[:1],
        "chosen": chat(prompt, GOOD), "rejected": chat(prompt, BAD), "rating_chosen": 5, "rating_rejected": 3,
    }),
    "OpenAI preferences": ("openai", lambda prompt: {
        "input": {"messages": [user(prompt)], "tools": [], "parallel_tool_calls": True}, "preferred_output": [assistant(GOOD)],
        "non_preferred_output": [assistant(BAD)],
    }),
    "ms-swift": ("ms_swift", lambda prompt: {"messages": chat(prompt, GOOD), "rejected_response": BAD}),
    "ms-swift, both chats": ("ms_swift_messages", lambda prompt: {
        "messages": chat(prompt, GOOD), "rejected_messages": chat(prompt, BAD),
    }),
    "SHP": ("shp", lambda prompt: {
        "post_id": f"id of {prompt}", "domain": "askbaking", "history": prompt, "human_ref_A": BAD, "human_ref_B": GOOD,
        "score_A": 3, "score_B": 5, "labels": 0, "score_ratio": 1.7,
    }),
    "WebGPT": ("webgpt", lambda prompt: {
        "question": {"dataset": "eli5", "id": f"id of {prompt}", "full_text": prompt}, "answer_0": GOOD, "answer_1": BAD,
        "quotes_0": {"title": ["t"], "extract": ["e"]}, "score_0": 1.0, "score_1": -1.0,
    }),
    "Stack Exchange": ("stack_exchange", lambda prompt: {
        "qid": len(prompt), "question": prompt, "date": "2020/01/01", "metadata": ["https://a.b"],
        "answers": [{"answer_id": n, "author": "a", "pm_score": 1 + 2 * n, "selected": bool(n), "text": text} for n, text in enumerate((BAD, GOOD))],
    }),
    "Stack Exchange pairs": ("stack_exchange_paired", lambda prompt: {
        "qid": len(prompt), "question": prompt, "date": "2020/01/01", "metadata": ["https://a.b"], "response_j": GOOD, "response_k": BAD,
    }),
}  # fmt: skip


def rows_of(name):
    """Return the rows of a set."""
    made = [SETS[name][1](prompt) for prompt in PROMPTS]
    return [row for item in made for row in (item if isinstance(item, list) else [item])]
