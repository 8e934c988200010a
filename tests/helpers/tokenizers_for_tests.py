"""Tiny tokenizers with the chat templates and the peculiarities of the model families the format must serve."""

import datetime
import json
from functools import cache
from pathlib import Path

import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"

CORPUS = [
    "The following is a break down on the correctness and usefulness of the assistant's response to my question:",
    "The answer is right, and the explanation is clear. It could be shorter.",
    "Wrong: 12 + 30 is 42, not 43. Überprüfung fehlt. 正しい答えです。",
    "<|im_start|>user\nWrite a function.<|im_end|>\ndef f(x):\n    return x  # [INST] <think> </tool_call>",
] * 4

# Split in the manner of GPT-4-like tokenizers: a word takes the space before it, each digit is a token.
WORDS = Regex(
    r"""'(?:s|t|re|ve|m|ll|d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)

MISTRAL_V3 = """{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}\
{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"""
MISTRAL_V1 = MISTRAL_V3.replace("'[/INST]'", "' [/INST]'")
GLM4 = """[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
DEEPSEEK_R1 = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
{{ '<|User|>' + message['content'] }}{% else %}\
{{ '<|Assistant|>' + message['content'].split('</think>')[-1] + '<|end_of_sentence|>' }}{% endif %}{% endfor %}"""

# family: chat template, special added tokens, other added tokens, way of splitting
FAMILIES = {
    "llama3": ("llama3", ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], [], "bytes"),
    "llama3_1": ("llama3_1", ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"], [], "bytes"),
    "llama3_2": ("llama3_2", ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], [], "bytes"),
    "qwen2_5": ("qwen2_5", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool_call>", "</tool_call>"], "bytes-nfc"),
    "qwen3": ("qwen3", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"], "bytes-nfc"),
    "phi3": ("phi3", ["<s>", "<|endoftext|>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], [], "metaspace-always"),
    "gemma2": ("gemma", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], ["\n\n", "▁▁", "<table>", "</table>"], "metaspace-never"),
    "gemma3": ("gemma3", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"], ["\n\n", "▁▁", "<table>"], "metaspace-never"),
    "mistral_v3": (MISTRAL_V3, ["<s>", "</s>", "[INST]", "[/INST]"], [], "metaspace-first"),
    "mistral_legacy": (MISTRAL_V3, ["<s>", "</s>", "[INST]", "[/INST]"], [], "prepend"),
    "chatml": ("qwen2_5", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [], "bytes-space"),
    "deepseek_r1": (DEEPSEEK_R1, ["<|begin|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>"], ["<think>", "</think>"], "bytes"),
}  # fmt: skip

# Which role closes its turn with a token, where it is not the user's.
CRITIQUE_ROLE = {"deepseek_r1": "assistant"}
NO_SYSTEM = {"gemma2", "mistral_v3", "mistral_legacy", "deepseek_r1"}


def _bytes_backend(special: list[str], add_prefix_space: bool, normalizer=None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(WORDS, "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if add_prefix_space:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _metaspace_backend(scheme: str) -> Tokenizer:
    """SentencePiece-like: spaces are ▁, unknown characters fall back to bytes, nothing is split beforehand."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=["<unk>"], show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"] | {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if scheme == "prepend":
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return backend


@cache
def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of about 500 tokens in the manner of `family`, with TRL's copy of the family's chat template."""
    template, special, other, kind = FAMILIES[family]
    if kind.startswith("bytes"):
        normalizer = normalizers.NFC() if kind == "bytes-nfc" else None
        backend = _bytes_backend(special, kind == "bytes-space", normalizer)
    else:
        backend = _metaspace_backend(kind.removeprefix("metaspace-"))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in other])
    path = TRL_TEMPLATES / f"{template}.jinja"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[0],
        eos_token=special[1] if len(special) > 3 else special[0],
        chat_template=path.read_text() if len(template) < 40 else template,
    )


NORMALIZERS = {
    "none": None,
    "nfc": normalizers.NFC(),
    "nfd": normalizers.NFD(),
    "nfkc": normalizers.NFKC(),
    "nfkd": normalizers.NFKD(),
    "lowercase": normalizers.Lowercase(),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "bert": normalizers.BertNormalizer(),
    "bert-cased": normalizers.BertNormalizer(lowercase=False, strip_accents=True),
    "space": normalizers.Replace(" ", "▁"),
    "strip": normalizers.Strip(),
    "nmt": normalizers.Nmt(),
    "nfkc-lowercase": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
    "replace": normalizers.Replace(Regex(r"\s+"), " "),
}
# How the added tokens are spelt, which then all have `normalized=True`
SPELLINGS = {
    "as it is": lambda token: token,
    "upper": str.upper,
    "odd": lambda token: f"{token[:2]}ﬁ É {token[2:]}",
}


def renormalized(family: str, normalizer: str, spelling: str) -> PreTrainedTokenizerFast:
    """The tokenizer of `family` with another normaliser, and its added tokens spelt otherwise and normalised."""
    tokenizer = make_tokenizer(family)
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    template, names = tokenizer.chat_template, {}
    for token in description["added_tokens"]:
        if len(token["content"].strip("▁\n")) < 2:
            continue
        names[token["content"]] = SPELLINGS[spelling](token["content"])
        template = template.replace(token["content"], names[token["content"]])
        token |= {"content": names[token["content"]], "normalized": True}
    backend = Tokenizer.from_str(json.dumps(description))
    if NORMALIZERS[normalizer] is not None:
        steps = [NORMALIZERS[normalizer], *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = normalizers.Sequence(steps)
    bos, eos = (names.get(token, token) for token in (tokenizer.bos_token, tokenizer.eos_token))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, chat_template=template)


_CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
_CHATML += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# Ways in which families spell today's date (over Qwen's tokens)
DATED_TEMPLATES = {
    "date_string": "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|im_start|>system\nToday: {{ date_string }}<|im_end|>\n",
    "date_string, overwritten": "{% set date_string = strftime_now('%d %b %Y') %}"
    "<|im_start|>system\nToday: {{ date_string }}<|im_end|>\n",
    "today": "{% set today = strftime_now('%d %B %Y') %}<|im_start|>system\nToday Date: {{ today }}<|im_end|>\n",
    "inline": "<|im_start|>system\nToday's Date: {{ strftime_now('%B %d, %Y') }}.\n<|im_end|>\n",
    "iso": "{% if strftime_now is defined %}<|im_start|>system\nCurrent date: {{ strftime_now('%Y-%m-%d') }}<|im_end|>\n{% endif %}",
    "two": "{% set date_string = date_string or strftime_now('%Y') %}<|im_start|>system\n{{ date_string }}, a "
    "{{ strftime_now('%A') }}<|im_end|>\n",
    "date": "<|im_start|>system\nIt is {{ date or strftime_now('%d/%m/%y') }}.<|im_end|>\n",
}


def dated_tokenizer(spelling: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose chat template writes today's date."""
    if spelling in FAMILIES:
        return make_tokenizer(spelling)
    tokenizer = type(make_tokenizer("qwen3"))(tokenizer_object=make_tokenizer("qwen3").backend_tokenizer)
    tokenizer.chat_template = DATED_TEMPLATES[spelling] + _CHATML
    return tokenizer


class Clock:
    """The time of chat templates, some days from now: patch `datetime` in transformers with it."""

    def __init__(self, days: int):
        self.days = days

    def now(self):
        return datetime.datetime.now() + datetime.timedelta(days=self.days)
