"""
Stage 2: the model of stage 1 rewrites all critiques of a preference dataset, so that stage 3 trains on its own words.

The new dataset has the old columns, with chosen_feedback and rejected_feedback replaced, the generated token ids beside
them (chosen_feedback_ids, …: training uses these, since decoded text does not always encode back to them), and finish
reasons (chosen_finish_reason, …: "length" marks a critique that was cut).

python examples/build_self_critiques.py --model_name_or_path critic-sft --dataset_name pairs.jsonl \
    --output_dir self-critiques --max_new_tokens 1024 --batch_size 32
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import TrlParser

from cloud_hf import CLoudConfig, CLoudForRewardModeling, CritiqueFormat, Score, Scorer, TransformersScorer
from cloud_hf.configuration_cloud import read_config
from cloud_hf.data.loading import load_rows
from cloud_hf.data.schemas import PAIR_COLUMNS, check_columns, response_of
from cloud_hf.evaluation.pairs import FittedRow, fit_rows
from cloud_hf.loading import refuse_adapter
from cloud_hf.scoring import context_length
from cloud_hf.serving.backends import BackendArguments, open_backend


@dataclass(kw_only=True)
class SelfCritiqueArguments(BackendArguments):
    """
    Which model criticises what. The arguments of [`BackendArguments`], and

    Parameters:
        model_name_or_path (`str`):
            The model of stage 1 (a language model), or a CLoud model.
        dataset_name (`str`):
            Hub id, JSONL or Parquet file, or `save_to_disk` folder, with the columns prompt, chosen, rejected.
        output_dir (`str`):
            Folder for the new dataset.
        dataset_config (`str`, *optional*):
            Configuration of a Hub dataset.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split to rewrite.
        critique_prompt, critique_role, keep_thinking, format:
            How a critique is asked for; use the values of stage 1. A CLoud model knows its own.
        num_critiques (`int`, *optional*, defaults to `1`):
            Critiques per response; with several, the columns hold lists.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest critique in tokens.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            What happens to rows that do not fit the model's context: error, drop or truncate_prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
    """

    model_name_or_path: str = field(metadata={"help": "The model of stage 1, or a CLoud model."})
    dataset_name: str = field(metadata={"help": "Hub id, JSONL or Parquet file, or save_to_disk folder."})
    output_dir: str = field(metadata={"help": "Folder for the new dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to rewrite."})
    critique_prompt: str | None = field(default=None, metadata={"help": "Text that opens the critique turn."})
    critique_role: str = field(default="user", metadata={"help": "Role of the critique turn: user or assistant."})
    keep_thinking: bool = field(default=False, metadata={"help": "Show <think> blocks the template would drop."})
    format: str = field(default="cloud", metadata={"help": "Spelling of conversations: cloud or reference."})
    num_critiques: int = field(default=1, metadata={"help": "Critiques per response."})
    temperature: float = field(default=0.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest critique in tokens."})
    overlong_policy: str = field(default="error", metadata={"help": "Over-long rows: error, drop or truncate_prompt."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})


ARGUMENTS = (SelfCritiqueArguments,)


@contextmanager
def open_critic(args: SelfCritiqueArguments) -> Iterator[tuple[Scorer, CritiqueFormat, int | None, CLoudConfig]]:
    """The model of stage 1 has no reward head: one of random numbers does, as the rewards are not used."""
    name = args.model_name_or_path
    refuse_adapter(name)
    config = read_config(name)
    if isinstance(config, CLoudConfig):
        if not config.critique:
            raise ValueError(f"{name} is a classic reward model: it writes no critiques.")
        if (
            args.critique_prompt is not None
            or args.critique_role != "user"
            or args.keep_thinking
            or args.format != "cloud"
        ):
            raise ValueError("A CLoud model knows how it is asked for critiques: leave those options out.")
        with open_backend(name, args) as opened:
            yield *opened, config
        return
    if args.backend == "server":
        raise ValueError(
            f"{name} is a language model, and a reward server serves CLoud models. Use another `backend`."
        )
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = CLoudForRewardModeling.from_base(
        name,
        tokenizer,
        critique_prompt=args.critique_prompt,
        critique_role=args.critique_role,
        keep_thinking=args.keep_thinking,
        format=args.format,
        dtype=args.dtype,
        device_map="cuda" if torch.cuda.is_available() and args.backend == "transformers" else None,
    )
    config = model.config
    if args.backend == "transformers":
        scorer = TransformersScorer(model, tokenizer, args.batch_size, show_progress=True)
        yield scorer, CritiqueFormat.from_config(config, tokenizer), context_length(config), config
        return
    with tempfile.TemporaryDirectory(prefix="cloud-critic-") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        with open_backend(folder, args) as opened:
            yield *opened, config


def main(args: SelfCritiqueArguments):
    if Path(args.output_dir).resolve() == Path(args.dataset_name).resolve():
        raise ValueError(f"`output_dir` is the dataset itself ({args.output_dir}); name another folder.")
    rows = load_rows(args.dataset_name, args.dataset_split, args.dataset_config)
    check_columns(rows.column_names, PAIR_COLUMNS, "Writing critiques")
    with open_critic(args) as (scorer, critique_format, context, config):
        options = (critique_format, context, args.overlong_policy, args.max_new_tokens)
        fitted = fit_rows(rows, responses_to_judge, *options)
        scores = scorer.score(
            [row.prompt for row in fitted.rows for _ in row.responses],
            [response for row in fitted.rows for response in row.responses],
            num_critiques=args.num_critiques,
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            seed=args.seed,
        )
    new_rows = Dataset.from_list(
        [
            new_row(row, chosen, rejected, args.num_critiques)
            for row, chosen, rejected in zip(fitted.rows, scores[::2], scores[1::2], strict=True)
        ]
    )
    new_rows.save_to_disk(args.output_dir)
    stats = count(config, scores, fitted, critique_format)
    Path(args.output_dir, "generation.json").write_text(json.dumps(stats, indent=2))
    print(
        f"{stats['critiques']} critiques for {len(new_rows)} rows in {args.output_dir}: {stats['critiques_cut']} cut at "
        f"{args.max_new_tokens} tokens, {fitted.dropped} row(s) dropped and {fitted.shortened} shortened as over-long."
    )


def responses_to_judge(row: dict) -> list[str]:
    """Empty responses are refused here: the training stage would refuse them after all critiques are paid for."""
    return [response_of(row, side) for side in ("chosen", "rejected")]


def new_row(row: FittedRow, chosen: Score, rejected: Score, num_critiques: int) -> dict:
    """The row with the new critiques, and with the prompt they were written for if that was shortened."""
    new = {**row.row, "prompt": row.shortened_prompt}
    for side, score in (("chosen", chosen), ("rejected", rejected)):
        new[f"{side}_feedback"] = list(score.critiques)
        new[f"{side}_feedback_ids"] = list(score.critique_ids)
        new[f"{side}_finish_reason"] = list(score.finish_reasons)
        if num_critiques == 1:
            for name in (f"{side}_feedback", f"{side}_feedback_ids", f"{side}_finish_reason"):
                new[name] = new[name][0]
    return new


def count(config, scores, fitted, critique_format) -> dict:
    """Tokens read and written, and the floating-point operations of a forward pass over them (2 per weight)."""
    prompt_tokens = sum(
        len(critique_format.encode_prefix(row.prompt, response).input_ids)
        for row in fitted.rows
        for response in row.responses
    )
    critique_tokens = sum(len(ids) + 1 for score in scores for ids in score.critique_ids)
    critiques = [reason for score in scores for reason in score.finish_reasons]
    prompt_tokens *= len(critiques) // len(scores)
    weights = CLoudForRewardModeling.without_weights(config).num_parameters(exclude_embeddings=True)
    flops = 2 * weights * (prompt_tokens + critique_tokens)
    return {
        "critiques": len(critiques),
        "critiques_cut": critiques.count("length"),
        "prompt_tokens": prompt_tokens,
        "critique_tokens": critique_tokens,
        "flops": flops,
    }


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
