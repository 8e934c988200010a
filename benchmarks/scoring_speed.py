"""
Measure how fast critiques are written and scored, compared with plain generation and with the steps of the reference implementation. The
workload is fixed: a random Llama with 34 M parameters and a byte-level tokenizer, 64 chats of 250 ± 120 tokens, 128 new tokens each,
greedy, fp32.

- reference: left-padded batches of 16 in the given order, `generate`, decoding to text, tokenising again, and a second forward
  pass with all logits and all hidden states.
- generate: `generate` of the language model alone, in our batches, for the same number of tokens.
- score: `CLoudForRewardModeling.score`.
- vllm_plain: vLLM alone, for the same number of tokens.
- vllm_score: `CLoudVLLM.score`.
- cached, uncached: 16 sampled critiques of one response with vLLM, either in one request with prefix caching or as 16 rows
  without it, for a chat eight times as long as the critique.

Each side runs in a separate process; in each round all sides run one after another.

python benchmarks/scoring_speed.py --backends transformers vllm
"""

import argparse
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import torch
from recording import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cloud_hf import CLoudForRewardModeling, CritiqueFormat


BATCH_SIZE = 16
NUM_CHATS = 64
NEW_TOKENS = 128
MEAN_LENGTH, SPREAD = 250, 120
NUM_CRITIQUES = 16
LONG_LENGTH = 8 * NEW_TOKENS
CRITIQUE_PROMPT = "Is it right?"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
LIMITS = {
    # minimum ratios of rewards per second
    "score / reference": ("score", "reference", 1.4),
    "score / generate": ("score", "generate", 0.95),
    "vllm_score / reference": ("vllm_score", "reference", 3.5),
    "vllm_score / vllm_plain": ("vllm_score", "vllm_plain", 0.95),
}
SHARING_LIMIT = 0.45  # maximum ratio of seconds


# -------------------------------------------------------------------------------------------------------- workload


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Create a tokenizer in which every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|im_start|>", "<|reserved_0|>"],
        chat_template=CHATML,
    )


def save_model(folder: str):
    """Save a random reward model that writes letters until the token budget ends the critique, greedy or sampled."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 4,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    language_model = LlamaForCausalLM(config)
    allow_only_letters(language_model, tokenizer)
    base = f"{folder}/base"
    language_model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = CLoudForRewardModeling.from_base(base, critique_prompt=CRITIQUE_PROMPT)
    model.save_pretrained(f"{folder}/reward")
    tokenizer.save_pretrained(f"{folder}/reward")


@torch.no_grad()
def allow_only_letters(language_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast):
    """
    Change weights so that one hidden dimension has the same positive value at every position, which the LM head uses to rule out
    everything but letters. Decoded critiques therefore encode back to the same number of tokens on every side.
    """
    letters = tokenizer.convert_tokens_to_ids(list(string.ascii_letters))
    language_model.model.embed_tokens.weight[:, 0] = 1.0
    for layer in language_model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    language_model.lm_head.weight[:, 0] = -1e4
    language_model.lm_head.weight[letters, 0] = 0.0


def make_chats(critique_format: CritiqueFormat, lengths: list[int], seed: int) -> tuple[list[str], list[str]]:
    """Generate prompts and responses from random words, so that the prefixes have the given lengths in tokens."""
    rng = random.Random(seed)
    frame = len(critique_format.encode_prefix("x", "x").input_ids) - 2
    prompts, responses = [], []
    for length in lengths:
        text = "".join(rng.choice(string.ascii_lowercase) for _ in range(length - frame))
        cut = rng.randint(len(text) // 4, 3 * len(text) // 4)
        prompts.append(text[:cut])
        responses.append(text[cut:])
        assert len(critique_format.encode_prefix(prompts[-1], responses[-1]).input_ids) == length
    return prompts, responses


def chats(critique_format: CritiqueFormat) -> tuple[list[str], list[str]]:
    """Generate the 64 chats."""
    rng = random.Random(0)
    lengths = [rng.randint(MEAN_LENGTH - SPREAD, MEAN_LENGTH + SPREAD) for _ in range(NUM_CHATS)]
    return make_chats(critique_format, lengths, seed=1)


def load(folder: str):
    """Load the model, the tokenizer, the format and the chats."""
    model = CLoudForRewardModeling.from_pretrained(f"{folder}/reward", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/reward")
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    return model, tokenizer, critique_format, chats(critique_format)


# ----------------------------------------------------------------------------------------------------------- sides
# Each side returns a function that receives the round number, does the work once and returns the token count of each critique.


def reference(folder: str):
    model, tokenizer, critique_format, (prompts, responses) = load(folder)
    tokenizer.padding_side = "left"
    # Decode the prefixes to text, so that every side reads the same tokens
    texts = [
        critique_format.encode_prefix(prompt, response).text
        for prompt, response in zip(prompts, responses, strict=True)
    ]

    @torch.inference_mode()
    def run(number: int) -> list[int]:
        lengths = []
        for start in range(0, len(texts), BATCH_SIZE):
            batch = texts[start : start + BATCH_SIZE]
            inputs = tokenizer(batch, padding=True, return_tensors="pt", add_special_tokens=False)
            output = model.language_model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            new = output[:, inputs["input_ids"].shape[1] :]
            critiques = tokenizer.batch_decode(new, skip_special_tokens=True)
            whole = [f"{text} {critique}<|im_end|>" for text, critique in zip(batch, critiques, strict=True)]
            inputs = tokenizer(whole, padding=True, return_tensors="pt", add_special_tokens=False)
            output = model.language_model(**inputs, output_hidden_states=True, use_cache=False)
            assert output.logits.shape[:2] == inputs["input_ids"].shape
            model.reward_from_hidden(output.hidden_states[-1][:, -1]).tolist()
            lengths += [new.shape[1]] * len(batch)
        return lengths

    return run


def generate(folder: str):
    model, _, critique_format, (prompts, responses) = load(folder)
    encoded = [critique_format.encode_prefix(*pair).input_ids for pair in zip(prompts, responses, strict=True)]
    encoded.sort(key=len, reverse=True)

    @torch.inference_mode()
    def run(number: int) -> list[int]:
        lengths = []
        for start in range(0, len(encoded), BATCH_SIZE):
            batch = encoded[start : start + BATCH_SIZE]
            width = max(map(len, batch))
            output = model.language_model.generate(
                torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in batch]),
                attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch]),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            lengths += [output.shape[1] - width] * len(batch)
        return lengths

    return run


def score(folder: str):
    model, tokenizer, _, (prompts, responses) = load(folder)

    def run(number: int) -> list[int]:
        scores = model.score(prompts, responses, tokenizer, max_new_tokens=NEW_TOKENS, batch_size=BATCH_SIZE)
        return [len(score.critique_ids[0]) for score in scores]

    return run


def vllm_options() -> dict:
    """Return the options that all vLLM sides share."""
    return {"dtype": "float32", "max_model_len": 2048, "disable_log_stats": True}


def vllm_plain(folder: str):
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/base")
    critique_format = CritiqueFormat(tokenizer, critique_prompt=CRITIQUE_PROMPT)
    prompts = [
        {"prompt_token_ids": list(critique_format.encode_prefix(*pair).input_ids)}
        for pair in zip(*chats(critique_format), strict=True)
    ]
    llm = LLM(f"{folder}/base", enable_prefix_caching=False, **vllm_options())
    parameters = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)

    def run(number: int) -> list[int]:
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    return run


def _vllm_scorer(folder: str, enable_prefix_caching: bool):
    from cloud_hf.serving import CLoudVLLM

    critique_format = CritiqueFormat(
        AutoTokenizer.from_pretrained(f"{folder}/reward"), critique_prompt=CRITIQUE_PROMPT
    )
    scorer = CLoudVLLM(f"{folder}/reward", enable_prefix_caching=enable_prefix_caching, **vllm_options())
    return scorer, critique_format


def vllm_score(folder: str):
    # Disable prefix caching, as on the plain side, because the chats repeat in every round
    scorer, critique_format = _vllm_scorer(folder, enable_prefix_caching=False)
    prompts, responses = chats(critique_format)

    def run(number: int) -> list[int]:
        return [len(score.critique_ids[0]) for score in scorer.score(prompts, responses, max_new_tokens=NEW_TOKENS)]

    return run


def _critiques_of_one(folder: str, cached: bool):
    scorer, critique_format = _vllm_scorer(folder, enable_prefix_caching=cached)

    def run(number: int) -> list[int]:
        # Use a new chat in each round, because an earlier one would already be cached
        prompts, responses = make_chats(critique_format, [LONG_LENGTH], seed=100 + number)
        options = {"temperature": 1.0, "max_new_tokens": NEW_TOKENS}
        if cached:
            [result] = scorer.score(prompts, responses, num_critiques=NUM_CRITIQUES, **options)
            return [len(ids) for ids in result.critique_ids]
        results = scorer.score(prompts * NUM_CRITIQUES, responses * NUM_CRITIQUES, **options)
        return [len(result.critique_ids[0]) for result in results]

    return run


def cached(folder: str):
    return _critiques_of_one(folder, cached=True)


def uncached(folder: str):
    return _critiques_of_one(folder, cached=False)


SIDES = {side.__name__: side for side in (reference, generate, score, vllm_plain, vllm_score, cached, uncached)}


# ------------------------------------------------------------------------------------------------------- measuring


def serve(name: str, folder: str, descriptor: int):
    """Create a side, then run it each time a round number arrives."""
    connection = Connection(descriptor)
    run = SIDES[name](folder)
    connection.send("ready")
    while (number := connection.recv()) is not None:
        start = time.perf_counter()
        lengths = run(number)
        seconds = time.perf_counter() - start
        if set(lengths) != {NEW_TOKENS}:
            raise ValueError(f"{name} wrote critiques of {sorted(set(lengths))} tokens instead of {NEW_TOKENS}.")
        connection.send(seconds)


class Side:
    """A side in a separate interpreter, so that engines shut down cleanly."""

    def __init__(self, name: str, folder: str):
        self.connection, other = Pipe()
        command = [sys.executable, __file__, "--serve", name, folder, str(other.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[other.fileno()])
        other.close()  # so that a dead process closes the pipe
        self.connection.recv()

    def run(self, number: int) -> float:
        """Return the seconds of one run."""
        self.connection.send(number)
        return self.connection.recv()

    def close(self):
        """End the process if it has not already failed."""
        if self.process.poll() is None:
            self.connection.send(None)
        self.process.wait()


def measure(names: list[str], folder: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each side per round after a warm-up round; rounds alternate which side starts."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        sides = {name: stack.enter_context(closing(Side(name, folder))) for name in names}
        for number in range(rounds + 1):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                taken = sides[name].run(number)
                if number > 0:
                    seconds[name].append(taken)
                print(f"round {number}: {name} {taken:.2f} s", flush=True)
    return seconds


def physical_limit(folder: str) -> dict[str, float]:
    """
    Compute an upper bound for the speed of the transformers sides on this machine. Prefill is limited by its FLOPs at the speed of a large
    matmul. Decoding is limited by its FLOPs or by reading the weights once per step of each batch at the speed of a copy.
    """
    model, _, critique_format, (prompts, responses) = load(folder)
    layers = [p for name, p in model.language_model.named_parameters() if "embed_tokens" not in name]
    weights = sum(parameter.numel() for parameter in layers)
    lengths = [len(critique_format.encode_prefix(*pair).input_ids) for pair in zip(prompts, responses, strict=True)]
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    copied = min(_seconds(lambda: target.copy_(source)) for _ in range(7))
    left, right = torch.randn(2048, 512), torch.randn(512, 2048)
    product = torch.empty(2048, 2048)
    multiplied = min(_seconds(lambda: torch.mm(left, right, out=product)) for _ in range(30))
    bandwidth = 2 * source.nbytes / copied  # each byte is read and written
    flops = 2 * 2048 * 512 * 2048 / multiplied
    steps = NEW_TOKENS * NUM_CHATS // BATCH_SIZE
    prefill = 2 * weights * sum(lengths) / flops
    decoding = max(2 * weights * NUM_CHATS * NEW_TOKENS / flops, steps * weights * 4 / bandwidth)
    return {
        "parameters": sum(parameter.numel() for parameter in model.language_model.parameters()),
        "copy_gb_per_second": bandwidth / 1e9,
        "matmul_gflops_per_second": flops / 1e9,
        "weights_read_seconds": steps * weights * 4 / bandwidth,
        "prefill_seconds": prefill,
        "decoding_seconds": decoding,
        "rewards_per_second": NUM_CHATS / (prefill + decoding),
    }


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def summarise(seconds: dict[str, list[float]]) -> dict:
    """Return medians, spreads, and ratios with their limits. Each ratio is the median over rounds."""
    sides = {
        name: {
            "seconds_median": statistics.median(values),
            "seconds_min": min(values),
            "seconds_max": max(values),
            "rewards_per_second": (NUM_CRITIQUES if name in ("cached", "uncached") else NUM_CHATS)
            / statistics.median(values),
        }
        for name, values in seconds.items()
    }
    ratios = {}
    for label, (ours, theirs, limit) in LIMITS.items():
        if ours in seconds and theirs in seconds:
            by_round = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
            ratios[label] = _ratio(by_round, limit, at_least=True)
    if "cached" in seconds:
        by_round = [a / b for a, b in zip(seconds["cached"], seconds["uncached"], strict=True)]
        ratios["seconds cached / uncached"] = _ratio(by_round, SHARING_LIMIT, at_least=False)
    return {"sides": sides, "ratios": ratios}


def _ratio(by_round: list[float], limit: float, at_least: bool) -> dict:
    value = statistics.median(by_round)
    return {
        "value": value,
        "lowest": min(by_round),
        "highest": max(by_round),
        "limit": limit,
        "limit_is": "at least" if at_least else "at most",
        "reached": value >= limit if at_least else value <= limit,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=["transformers", "vllm"], default=["transformers", "vllm"])
    parser.add_argument("--rounds", type=int, default=5, help="number of runs of each side, after a warm-up run")
    parser.add_argument("--output", default="benchmarks/results/scoring_speed.json")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # The transformers sides always run, because vLLM is compared with them
    names = ["reference", "generate", "score"]
    if args.backends == ["vllm"]:
        names = ["reference"]
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        limit = physical_limit(folder)
        seconds = {}
        if "vllm" in args.backends:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
            # Use all cores, like the other sides; by default, vLLM leaves one free
            cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
            seconds |= measure(["cached", "uncached"], folder, args.rounds)
            names += ["vllm_plain", "vllm_score"]
        seconds |= measure(names, folder, args.rounds)
    result = {
        "workload": {
            "chats": NUM_CHATS,
            "chat_tokens": f"{MEAN_LENGTH} ± {SPREAD}, uniform",
            "new_tokens": NEW_TOKENS,
            "critiques_of_one_response": NUM_CRITIQUES,
            "its_chat_tokens": LONG_LENGTH,
            "rounds": args.rounds,
            "cores": os.cpu_count(),
        },
        "physical_limit": limit,
        **summarise(seconds),
    }
    save(args.output, result)
    report(result)


def report(result: dict):
    """Print the measurements next to their limits."""
    limit = result["physical_limit"]
    print(
        f"\nPhysical limit: {limit['rewards_per_second']:.2f} rewards/s ({limit['copy_gb_per_second']:.1f} GB/s copied, "
        f"{limit['matmul_gflops_per_second']:.1f} GFLOP/s multiplied; prefill {limit['prefill_seconds']:.1f} s, decoding "
        f"{limit['decoding_seconds']:.1f} s, of which reading the weights alone {limit['weights_read_seconds']:.1f} s)"
    )
    for name, side in result["sides"].items():
        print(
            f"{name:12} {side['rewards_per_second']:6.2f} rewards/s   median {side['seconds_median']:.2f} s "
            f"({side['seconds_min']:.2f} to {side['seconds_max']:.2f})"
        )
    for label, ratio in result["ratios"].items():
        print(
            f"{label:26} {ratio['value']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f}), limit {ratio['limit_is']} "
            f"{ratio['limit']}: {'reached' if ratio['reached'] else 'NOT reached'}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:4], int(sys.argv[4]))
    else:
        main()
