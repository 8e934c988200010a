"""
Write the measured numbers into README.md and the pages of docs/, from the files in benchmarks/results/.

A block between `<!-- figures: NAME -->` and `<!-- /figures -->` is replaced by what the function NAME returns. A test checks that
the pages are up to date.

    python docs/figures.py                                                        # rewrite the blocks
    python docs/figures.py --quickstart runs/seed-0 runs/seed-1 runs/seed-2       # first record finished quickstart runs
"""

import argparse
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(?P<start><!-- figures: (?P<name>\w+) -->\n).*?(?P<end><!-- /figures -->)", re.DOTALL)


def quickstart(result: dict) -> str:
    classic, cloud = result["arms"]["classic"], result["arms"]["cloud"]
    seeds = [f"seed {run['seed']}" for run in classic]
    accuracy = [
        [name, *[f"{run['accuracy']:.1%} / {run['hard']:.1%}" for run in runs]]
        for name, runs in (
            ("classic: all pairs / three or four swaps", classic),
            ("CLoud: all pairs / three or four swaps", cloud),
        )
    ]
    best = [f"{a['best_of_4']:.1%} / {b['best_of_4']:.1%}" for a, b in zip(classic, cloud, strict=True)]
    rows = [*accuracy, ["best of 4: classic / CLoud (chance 25%)", *best]]
    swaps = [
        f"{k} swap{'s' * (k != '1')}: {spread([run['by_difficulty'][k] for run in classic])}"
        for k in classic[0]["by_difficulty"]
    ]
    ratio = classic[0]["train_flops"] / cloud[0]["train_flops"] - 1
    machine = result["machine"]
    notes = (
        f"Each seed is evaluated on {classic[0]['n']} distinct pairs whose swap sequences occur in no training set. The classic model stays near "
        f"chance ({', '.join(swaps)}; only a few distinct pairs have one swap), although it gets {ratio:.0%} more training FLOPs than all CLoud stages together. "
        f"Recorded on an {machine['processor']} with torch {machine['torch']}: a different processor or thread count can change these accuracies by several points."
    )
    return f"{table(['accuracy', *seeds], rows)}\n\n{notes}"


def spread(shares: Sequence[float]) -> str:
    """Return the range of the shares, from the smallest to the largest."""
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low} to {high}"


def scoring_speed(result: dict) -> str:
    work, sides, ratios = result["workload"], result["sides"], result["ratios"]
    names = {
        "reference": "the reference implementation: generate, re-tokenise, second forward pass",
        "generate": "`generate` alone, without rewards",
        "score": "`model.score`",
        "vllm_plain": "vLLM alone, without rewards",
        "vllm_score": "`CLoudVLLM`",
    }
    notes = {
        "score": f"{ratios['score / reference']['value']:.2f} × the reference implementation",
        "vllm_score": f"{ratios['vllm_score / reference']['value']:.2f} × the reference implementation, "
        f"{ratios['vllm_score / vllm_plain']['value']:.2f} × vLLM alone",
    }
    rows = [[name, f"{sides[key]['rewards_per_second']:.2f}", notes.get(key, "")] for key, name in names.items()]
    limit = result["physical_limit"]
    return (
        f"{work['cores']} CPU cores, fp32, a randomly initialised model with {limit['parameters'] / 1e6:.0f} M parameters, and {work['chats']} chats of "
        f"250 ± 120 tokens with {work['new_tokens']} new tokens each; medians of {work['rounds']} alternating rounds. On this machine, no "
        f"method could exceed about {limit['rewards_per_second']:.1f} rewards/s.\n\n"
        + table(["", "rewards/s", ""], rows)
        + f"\n\nSampling {work['critiques_of_one_response']} critiques of one response with prefix caching takes "
        f"{ratios['seconds cached / uncached']['value']:.2f} times as long as "
        f"{work['critiques_of_one_response']} requests without it.\n\nMeasured by `benchmarks/scoring_speed.py`."
    )


def scoring_speed_in_short(result: dict) -> str:
    ratios, cores = result["ratios"], result["workload"]["cores"]
    return (
        f"On {cores} CPU cores, `model.score` is {ratios['score / reference']['value']:.1f} times as fast as the reference implementation, and "
        f"`CLoudVLLM` is {ratios['vllm_score / reference']['value']:.1f} times as fast. When it generates critiques with rewards, `CLoudVLLM` reaches "
        f"{ratios['vllm_score / vllm_plain']['value']:.0%} of the speed of vLLM without rewards."
    )


def cascade(result: dict) -> str:
    runs, pooled = result["runs"], result["pooled"]
    seeds = [str(run["seed"]) for run in runs]
    # Key prefix: what the method chooses among, and the first part of the method's name
    names = {
        "all: ": ("pairs", "classic first, then critiques "),
        "trained swaps: ": ("pairs, easy ones with trained swaps only", "classic first, then critiques "),
        "best of 16, 4 critiques: ": ("16 candidates, 4 critiques each", ""),
        "best of 16, 8 critiques: ": ("16 candidates, 8 critiques each", ""),
    }
    rows = []
    for (start, (chosen_among, method)), (key, found) in itertools.product(names.items(), pooled.items()):
        if key.startswith(start):
            value, ends = found["minus_full"]["value"], found["minus_full"]["ci95"]
            interval = f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})" if ends else ""
            each = ", ".join(f"{100 * one:+.1f}" for one in found["seeds"]["minus_full"])
            rows.append(
                [
                    chosen_among,
                    f"{method}{key.removeprefix(start)}",
                    f"{found['accuracy']['value']:.1%}",
                    f"{100 * value:+.1f} points{interval}",
                    *([each] if len(seeds) > 1 else []),
                    f"{found['share_of_tokens']:.1%}",
                ]
            )
    full = pooled["all: both at once"]["full_accuracy"]
    tokens = sum(run["pairs"]["mixes"]["all"]["alone"]["cloud"]["tokens"]["value"] for run in runs) / len(runs)
    problems = sum(run["best_of_16"]["problems"] for run in runs)
    several = [f"seeds {', '.join(seeds)}"] if len(seeds) > 1 else []
    return (
        f"Shell game, seed{'s' * bool(several)} {', '.join(seeds)}; half of the pairs are easy (one swap), and half are hard (three or four swaps). For "
        f"pairs, the baseline is the CLoud model alone ({full['value']:.1%} of {full['n']} pairs right, at {tokens:.0f} tokens per pair); for candidates, it "
        f"is the choice with all critiques of all candidates ({problems} problems). Differences from the baseline have 95% intervals; tokens are given as a "
        "share of the baseline's tokens. Thresholds are chosen on other rows, for an accuracy loss of at most one point.\n\n"
        + table(["", "method", "accuracy", "difference", *several, "tokens"], rows)
        + "\n\nWriting critiques one at a time saves the most tokens. Here, halving should not start with the classic model, which discards correct candidates "
        "on hard problems. "
        "Measured by `benchmarks/cascade.py`."
    )


def classifier_export(result: dict) -> str:
    names = {
        "ours - transformers": "classic model against its export in transformers",
        "ours - vLLM": "classic model against its export in vLLM's pooling runner",
        "ours - fp64": "classic model against its export in fp64",
        "transformers - fp64": "export in fp32 against fp64",
        "transformers, batches of 16 - one at a time": "export in batches against one conversation at a time",
        "transformers, eager - sdpa": "export with eager against SDPA attention",
    }
    models = result["models"]
    rows = [["range of rewards", *(f"{found['span of rewards']:.1f}" for found in models.values())]]
    rows += [[name, *(f"{found[key]:.1e}" for found in models.values())] for key, name in names.items()]
    return (
        f"Largest differences between rewards over {result['chats']} conversations from {result['files']} preference files, for models whose random "
        "weights have a large standard deviation, in fp32 on a CPU:\n\n"
        + table(["", *models], rows)
        + "\n\nMeasured by `benchmarks/classifier_export.py`."
    )


def training_speed(result: dict) -> str:
    names = {
        "padding_free": "`--padding_free True`",
        "padded": "padded to the longest sequence of the batch",
        "reference": "padded to 2,048 tokens with all logits, as in the reference implementation",
        "limit": "for comparison: trunk and labelled logits only, one sequence at a time",
    }
    sides, sharing = result["sides"], result["ratios"]["shared_prompt / padding_free, several turns"]
    rows = [[name, f"{sides[key]['useful_tokens_per_second']:,.0f}"] for key, name in names.items()]
    return (
        f"{result['workload']['cores']} CPU cores, model of hidden size 512, real pairs with critiques:\n\n"
        + table(["", "useful tokens/s"], rows)
        + "\n\nWhere prompts make up half of the tokens, `--shared_prompt True` speeds this up by another factor of "
        f"{sharing['value']:.2f}; the saved tokens would allow a factor of {sharing['allowed']:.2f}. "
        "Measured by `benchmarks/training_speed.py`."
    )


def training_speed_in_short(result: dict) -> str:
    speed = {name: side["useful_tokens_per_second"] for name, side in result["sides"].items()}
    sharing = result["ratios"]["shared_prompt / padding_free, several turns"]
    return (
        f"On {result['workload']['cores']} CPU cores, with real pairs and critiques, `--padding_free True` is {speed['padding_free'] / speed['padded']:.1f} "
        f"times as fast as padding to the longest sequence of a batch. Where prompts make up half of the tokens, `--shared_prompt True` speeds this up by "
        f"another factor of {sharing['value']:.1f}."
    )


def against_trl(result: dict) -> str:
    names = {
        "trl": "TRL's `RewardTrainer`",
        "padded": "`CLoudTrainer`, classic arm",
        "padding_free": "with `--padding_free True`",
        "shared_prompt": "with `--shared_prompt True`",
    }
    ratios = {"trl": 1.0, **result["times_as_fast_as_trl"]}
    rows = [[name, f"{result['seconds'][key][0]:.0f} s", f"{ratios[key]:.1f} ×"] for key, name in names.items()]
    return (
        f"One epoch over {result['pairs']} pairs of human preferences ({result['tokens']:,} tokens), {result['base']}, batches of "
        f"{result['batch_size']} pairs, fp32 on a CPU ({result['machine']['threads']} thread):\n\n"
        + table(["", "CPU time", "speed relative to TRL"], rows)
        + "\n\nAll four compute the same loss; TRL's reward head starts from different random weights. One round, while other jobs were running. Measured by "
        "`benchmarks/against_trl.py`."
    )


def against_trl_in_short(result: dict) -> str:
    ratio = result["times_as_fast_as_trl"]
    return (
        f"Training a classic model from {result['base']} on {result['pairs']} pairs is {ratio['padded']:.1f} times as fast as with TRL's `RewardTrainer`. "
        f"With `--padding_free True`, it is {ratio['padding_free']:.1f} times as fast, and with `--shared_prompt True`, {ratio['shared_prompt']:.1f} times "
        "(CPU time of one epoch in fp32, one round)."
    )


def loss_memory(result: dict) -> str:
    work, sides = result["workload"], result["sides"]
    names = {
        "chunks_1": "`--lm_loss_chunks 1`",
        "chunks_8": "`--lm_loss_chunks 8`",
        "chunks_32": "`--lm_loss_chunks 32`",
    }
    names["all_logits"] = "logits of all positions together"
    rows = [
        [name, f"{sides[key]['seconds_median']:.1f} s", f"{sides[key]['peak_megabytes'] / 1000:.1f} GB"]
        for key, name in names.items()
    ]
    return (
        f"One training step on one pair (tokens: {work['tokens']}) with a vocabulary of {work['vocabulary']:,}, on {work['cores']} CPU cores:\n\n"
        + table(["", "time", "peak memory"], rows)
        + "\n\nMeasured by `benchmarks/loss_memory.py`."
    )


def plan_accuracy(result: dict) -> str:
    rows = [
        [
            row["model"],
            row["mode"],
            f"{row['planned_mib']:,.0f} MiB",
            f"{row['measured_mib']:,.0f} MiB",
            f"{row['ratio']:.3f}",
        ]
        for row in result["rows"]
    ]
    worst = max(abs(row["ratio"] - 1) for row in result["rows"])
    return (
        f"Planned and measured peak memory of one training step on a CPU in fp32; they differ by at most {worst:.1%}:\n\n"
        + table(["model", "mode", "planned", "measured", "ratio"], rows)
        + "\n\nMeasured by `benchmarks/plan_accuracy.py`."
    )


def plan_search(result: dict) -> str:
    """Return the CPU seconds of each search: the slower of the padded and the padding-free search."""
    models = result["models"]
    sizes = list(next(iter(models.values()))["padded"])
    rows = [
        [name, *(f"{max(found[size]['cpu_s'] for found in kinds.values()):.1f} s" for size in sizes)]
        for name, kinds in models.items()
    ]
    return (
        f"CPU time of the search for the largest micro-batch, by GPU memory, with sequences of {result['length']:,} tokens (padded or without padding, "
        "whichever takes longer). The 70B and 8B models are planned for 8 GPUs with ZeRO-3, the others for one GPU:\n\n"
        + table(["model", *(f"{size} GB" for size in sizes)], rows)
        + "\n\nMeasured by `benchmarks/plan_search.py`."
    )


def convert_memory(result: dict) -> str:
    return (
        f"Converting a {result['checkpoint_gb']:.1f} GB checkpoint in {result['shards']} shards uses "
        f"{result['convert_above_libraries_gb']:.2f} GB of memory on top of what the libraries need; the largest shard has "
        f"{result['largest_shard_gb']:.2f} GB. Loading and saving the complete model uses "
        f"{result['load_and_save_above_libraries_gb']:.2f} GB. Measured by `benchmarks/convert_memory.py`."
    )


def builder_throughput(result: dict) -> str:
    rates, memory = result["requests_per_second"], result["memory"]
    names = {
        "builder": "a builder",
        "client": "a bare loop over the same client library",
        "aiohttp": "a loop over aiohttp",
    }
    rows = [[name, f"{rates[key]:.0f}"] for key, name in names.items()]
    return (
        "Against a server that handles 64 requests at a time and answers each after 0.2 s (at most "
        f"{result['physical_limit_requests_per_second']:.0f} requests/s):\n\n"
        + table(["", "requests/s"], rows)
        + f"\n\nA journal entry takes about {result['journal_bytes_per_row'] - result['answer_bytes']:.0f} bytes in addition to the answer. "
        f"Building {memory['rows']:,} rows used at most {memory['peak_resident_mb']:.0f} MB of memory, more than half of it for the libraries. "
        "Measured by `benchmarks/builder_throughput.py`."
    )


def read_rows(result: dict) -> str:
    rows = [
        [form.replace("whole", "complete"), f"{found['rows_per_second']:,}"] for form, found in result["forms"].items()
    ]
    memory = result["memory"]
    return (
        f"{result['rows']:,} rows of about 1.5 kB, in ten forms, on one processor core:\n\n"
        + table(["form", "rows/s"], rows)
        + f"\n\nThe benchmark requires at least {result['slowest']['limit']:,} rows/s for each form. The process used at most {memory['peak_resident_mb']:,} MB of memory, "
        f"{memory['libraries_mb']} MB of it for the libraries. Measured by `benchmarks/read_rows.py`."
    )


def evaluation_overhead(result: dict) -> str:
    times = {backend: result[backend]["evaluate / direct"]["value"] for backend in ("transformers", "vllm")}
    rounds = " and ".join(str(result[backend]["rounds"]) for backend in times)
    return (
        "Checks, the journal and metrics add little to the scoring time. An evaluation takes "
        f"{times['transformers']:.3f} times as long as scoring the same chats directly with transformers, and {times['vllm']:.3f} times with vLLM (medians "
        f"of {rounds} rounds on {result['vllm']['threads']} cores). Measured by `benchmarks/evaluation_overhead.py`."
    )


def server_load(result: dict) -> str:
    first = result["transformers"]
    difference = max(result[backend]["largest_difference"] for backend in result)

    def memory(backend: str) -> list[str]:
        by_tenth = result[backend]["memory_mb_at_start_and_after_each_tenth"]
        return [backend, f"{by_tenth[5]:,} MB", f"{by_tenth[-1]:,} MB"]

    return (
        f"{first['requests']:,} requests from {first['clients']} clients, some of them cancelled, malformed or too large. Every returned "
        f"reward is within {difference:.0e} of the reward of the same chat scored alone. Memory used by the server:\n\n"
        + table(["backend", "after half of the requests", "at the end"], [memory(backend) for backend in result])
        + "\n\nMeasured by `benchmarks/server_load.py`."
    )


def interval_coverage(result: dict) -> str:
    names = {
        "share of right rows, 75 % (Wilson)": "share of right rows, true value 75% (Wilson)",
        "share of right rows, 95 % (Wilson)": "share of right rows, true value 95% (Wilson)",
        "share, rows with fractions (bootstrap)": "share of right rows, with fractional rows (bootstrap)",
        "difference of two models on the same rows (paired bootstrap)": "difference between two models on the same rows (paired bootstrap)",
        "area of selective accuracy (bootstrap)": "area under the selective accuracy curve (bootstrap)",
        "area of the oracle (bootstrap)": "area under the oracle's curve (bootstrap)",
    }
    sizes = dict.fromkeys(n for found in result["types"].values() for n in found)
    rows = [
        [names.get(name, name), *(f"{found[n]['coverage']:.1%}" if n in found else "–" for n in sizes)]
        for name, found in result["types"].items()
    ]
    runs = sorted(
        {part["runs"] + part["without_interval"] for found in result["types"].values() for part in found.values()}
    )
    return (
        "Share of 95% intervals that contain the true value, by the number of rows (pairs, problems, questions):\n\n"
        + table(["interval", *(f"n = {n}" for n in sizes)], rows)
        + f"\n\n{runs[0]:,} to {runs[-1]:,} simulated evaluations of each kind; the standard error of a 95% "
        f"share is {noise(runs[-1])} to {noise(runs[0])} points. Measured by `benchmarks/interval_coverage.py`."
    )


# The rule in benchmarks/claims/findings.py, in other words; the recorded reports quote that text, so it must not change
CLAIMS_RULE = (
    "The rule was fixed before the test problems were scored. There are two 95% intervals of the difference: over seeds (Student's t), and "
    "over seeds and problems (hierarchical bootstrap). On a task, a claim is *reproduced* if both lie above 0; otherwise *not reproduced* "
    "if the one over seeds lies below +2 points; otherwise, or with fewer than three seeds, *inconclusive*. Overall, a claim gets the "
    "verdict that at least two tasks share (*reproduced* only if no task is *not reproduced*), otherwise *inconclusive*."
)


def claims(report: dict) -> str:
    """Return the differences behind each claim, how they were recorded, and the rule for judging them."""
    tasks = list(report["arms"])

    def shown(found: dict) -> str:
        ends = " to ".join(f"{100 * end:+.1f}" for end in found["over_seeds"] or ())
        return f"{100 * found['mean']:+.1f} ({ends})" if ends else f"{100 * found['mean']:+.1f}"

    def cell(one: dict, task: str) -> str:
        found = one["tasks"][task]
        return "not run" if found is None else f"{shown(found)}, {one['verdicts'][task]}"

    rows = [[one["claim"], *(cell(one, task) for task in tasks), one["verdict"]] for one in report["findings"]]
    seeds = sorted({len(arm["seeds"]) for arms in report["arms"].values() for arm in arms.values()})
    number = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"{table(['claim', *tasks, 'overall'], rows)}\n\nDifferences in points of pair accuracy, with 95% intervals over {number} seeds. "
        f"Recorded on {report['machine']['processor']} with torch {report['machine']['torch']}.\n\n{CLAIMS_RULE}"
    )


def claims_in_short(report: dict) -> str:
    """Return the main differences, one sentence each."""

    def shown(claim: str) -> str:
        [one] = [one for one in report["findings"] if one["claim"] == claim]
        parts = [
            f"{100 * found['mean']:+.1f} points ({' to '.join(f'{100 * end:+.1f}' for end in found['over_seeds'])}) on {task}"
            for task, found in one["tasks"].items()
        ]
        return f"{'; '.join(parts)}."

    seeds = len(report["arms"]["shell"]["cloud"]["seeds"])
    return (
        f"- CLoud against the classic model at equal training compute, {seeds} seeds: {shown('CLoud beats classic at equal training compute')}\n"
        f"- Stage 4, which trains critiques on their outcome, against stage 3: {shown('Stage 4 beats stage 3')}"
    )


def claims_rl(report: dict) -> str:
    """Return how often the policies are right before and after training on each reward model."""
    if not report["rl"]:
        return "Not run."

    def change(values: list[float]) -> str:
        return f"{values[0]:.1%} to {values[-1]:.1%}"

    rows = [
        [
            task,
            judge,
            change(one["mean"]["solved"]),
            change(one["mean"]["favoured"]),
            ", ".join(f"{of['solved'][-1]:.1%}" for of in one["seeds"].values()),
        ]
        for task, judges in report["rl"].items()
        for judge, one in judges.items()
    ]
    header = ["task", "reward of", "solved, start to end", "favoured, start to end", "solved at the end, by seed"]
    return table(header, rows)


def smollm2(result: dict) -> str:
    """Return the accuracies of the run with a real model, by preference set."""

    def shown(found: dict) -> str:
        ends = found["ci95"]
        return f"{found['value']:.1%}" + (f" ({100 * ends[0]:.0f} to {100 * ends[1]:.0f})" if ends else "")

    def points(found: dict) -> str:
        ends = found["ci95"]
        interval = f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})" if ends else ""
        return f"{100 * found['value']:+.1f}{interval}"

    parts = {**result["sets"], "all": result["pooled"]}
    rows = [
        [name, str(found["classic"]["n"]), shown(found["classic"]), shown(found["cloud"]),
         points(found["cloud_minus_classic"]), shown(found["longer"])]
        for name, found in parts.items()
    ]  # fmt: skip
    train, cpu, pooled = result["rows"]["train"], result["cpu_s"], result["pooled"]
    trained = result["training"]
    cloud_s = cpu["critique_sft"] + cpu["self_critiques"] + cpu["cloud"]
    ends = pooled["cloud_minus_classic"]["ci95"]
    verdict = "excludes 0." if ends and (ends[0] > 0 or ends[1] < 0) else "includes 0, so the run shows no difference."

    def course(stage: str, loss: str) -> str:
        return f"{trained[stage]['first_quarter'][loss]:.2f} to {trained[stage]['last_quarter'][loss]:.2f}"

    header = ["set", "pairs", "classic", "CLoud", "difference in points", "choosing the longer response"]
    return (
        f"{table(header, rows)}\n\nAccuracy with 95% intervals. The interval of the difference over all pairs {verdict} Of {train['rows']:,} pairs, "
        f"{train['fitting']} are short enough, and {train['drawn']} of these were used for training. CLoud took {cloud_s / 60:.0f} minutes of CPU time "
        f"({trained['critique-sft']['steps']} steps of stage 1, {trained['cloud']['steps']} of stage 3), the classic model {cpu['classic'] / 60:.0f} minutes "
        f"({trained['classic']['steps']} steps), and the evaluation {cpu['evaluation'] / 60:.0f} minutes. From the first to the last quarter of the steps, the "
        f"loss of stage 1 went from {course('critique-sft', 'loss')}, the Bradley-Terry loss of stage 3 from {course('cloud', 'pairwise_loss')} "
        f"and that of the classic arm from {course('classic', 'pairwise_loss')}. {pooled['critiques_cut']:.0%} of the evaluation's critiques were "
        f"truncated at the token limit. Recorded on one core of {result['machine']['processor']} with torch {result['machine']['torch']}, while other jobs were running."
    )


def noise(runs: int) -> str:
    """Return the standard error, in points, of a 95% share."""
    return f"{100 * (0.95 * 0.05 / runs) ** 0.5:.1f}"


FIGURES: dict[str, Callable[[dict], str]] = {
    function.__name__: function
    for function in (
        quickstart,
        scoring_speed,
        scoring_speed_in_short,
        cascade,
        classifier_export,
        training_speed,
        training_speed_in_short,
        against_trl,
        against_trl_in_short,
        loss_memory,
        plan_accuracy,
        plan_search,
        convert_memory,
        builder_throughput,
        read_rows,
        evaluation_overhead,
        server_load,
        interval_coverage,
        claims,
        claims_in_short,
        claims_rl,
        smollm2,
    )
}


# Functions whose results are not in NAME.json
FILES = {
    "against_trl_in_short": "against_trl.json",
    "claims": "claims/report.json",
    "claims_in_short": "claims/report.json",
    "scoring_speed_in_short": "scoring_speed.json",
    "training_speed_in_short": "training_speed.json",
    "claims_rl": "claims/report.json",
    "smollm2": "smollm2/figures.json",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. Columns with numbers, except the first column, are right-aligned."""
    numeric = [all(re.match(r"[\d,.]+( |$|×)", row[i]) for row in rows) for i in range(len(header))]
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def pages() -> list[Path]:
    """Return the files that may contain blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fill(text: str) -> str:
    """Return the text of a page with its blocks rewritten from the results."""

    def block(match: re.Match) -> str:
        path = FILES.get(match["name"], f"{match['name']}.json")
        result = json.loads((RESULTS / path).read_text(encoding="utf8"))
        return f"{match['start']}{FIGURES[match['name']](result)}\n{match['end']}"

    return BLOCK.sub(block, text)


def record_quickstart(runs: Sequence[Path]):
    """Write the results of finished quickstart runs to `benchmarks/results/quickstart.json`."""
    reports = [json.loads((run / "report.json").read_text(encoding="utf8")) for run in runs]
    arms = {
        arm: [
            {
                "seed": report["seed"],
                "accuracy": report["arms"][arm]["accuracy"],
                "hard": report["arms"][arm]["hard"],
                "best_of_4": report["arms"][arm]["best_of_n"]["4"],
                **{name: report["arms"][arm][name] for name in ("n", "by_difficulty", "train_flops", "train_cpu_s")},
            }
            for report in reports
        ]
        for arm in ("classic", "cloud")
    }
    record = {"version": 2, "arms": arms, "machine": reports[0]["machine"]}
    (RESULTS / "quickstart.json").write_text(json.dumps(record, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument(
        "--quickstart", nargs="+", type=Path, help="folders of finished quickstart runs, which are recorded first"
    )
    args = parser.parse_args()
    if args.quickstart:
        record_quickstart(args.quickstart)
    for page in pages():
        page.write_text(fill(page.read_text(encoding="utf8")), encoding="utf8")


if __name__ == "__main__":
    main()
