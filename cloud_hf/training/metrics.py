"""Trainer mixin for pair metrics: it keeps sums on the device, averages over all ranks, and returns predictions in dataset order."""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, recursively_apply
from transformers import EvalPrediction

from .resume import ExactResume


class PairMetrics(ExactResume):
    """
    Mixin for TRL's reward trainer. Metrics are means over all pairs or tokens since the last log (or, in evaluation, over the evaluation
    set), so they do not depend on the batch size or the number of ranks.

    Until the next log, sums stay on the device: reading a value at every step would make the host wait.
    """

    def __init__(self, *args, **kwargs):
        # Floats at the start and after a resume, otherwise tensors on the device
        self._sums: dict[str, dict[str, Any]] = {"train": defaultdict(float), "eval": defaultdict(float)}
        super().__init__(*args, **kwargs)

    def _inner_training_loop(self, *args, **kwargs):
        # `auto_find_batch_size` starts the loop again after an out-of-memory error, and `train` may be called twice
        self._sums["train"].clear()
        self._total_train_tokens = 0
        return super()._inner_training_loop(*args, **kwargs)

    def _count_tokens(self, inputs: dict[str, Any]):
        if self.model.training:
            self._total_train_tokens = self._total_train_tokens + inputs["attention_mask"].sum()

    def _add_sums(self, columns: dict[str, torch.Tensor], chosen: torch.Tensor, rejected: torch.Tensor):
        """Add columns with one value per pair to the sums, and update the lowest and highest reward."""
        real = self._real_pairs(len(chosen))
        totals = self._sums["train" if self.model.training else "eval"]
        # Sums over an epoch would lose precision in fp32, so use float64, except on Apple's GPUs, which lack it
        exact = torch.float32 if chosen.device.type == "mps" else torch.float64
        table = torch.stack([column.to(chosen.device)[:real] for column in columns.values()]).to(exact)
        for name, value in zip(columns, table.sum(-1), strict=True):
            totals[name] = totals[name] + value
        if real:
            rewards = torch.cat([chosen[:real], rejected[:real]])
            totals["min_reward"] = rewards.min().clamp(max=totals.get("min_reward", math.inf))
            totals["max_reward"] = rewards.max().clamp(min=totals.get("max_reward", -math.inf))

    def _real_pairs(self, pairs: int) -> int:
        """Count the pairs in this rank's batch that are not duplicates: accelerate fills the last batch with earlier rows."""
        state = self.accelerator.gradient_state
        if self.model.training or not state.end_of_dataloader or state.remainder <= 0:
            return pairs
        return max(0, min(pairs, state.remainder - self.accelerator.process_index * pairs))

    def _take_means(self, mode: str) -> dict[str, float]:
        """Return the metrics since the last call, over all ranks."""
        ranks = gather_object([_floats(self._sums[mode])])
        self._sums[mode].clear()
        combine = {"min_reward": min, "max_reward": max}
        names = dict.fromkeys(name for rank in ranks for name in rank)
        return _means({n: combine.get(n, sum)(rank[n] for rank in ranks if n in rank) for n in names})

    def _joint_loss(self, means: dict[str, float]) -> float:
        """Combine an evaluation's means into the joint loss, weighted as in training, and remove `centring` from the means."""
        centring = (self.args.center_rewards_coefficient or 0.0) * means.pop("centring", 0.0)
        others = self.args.lm_loss_weight * means.get("lm_loss", 0.0)
        others += self.args.partial_reward_weight * means.get("partial_pairwise_loss", 0.0)
        return self.args.bradley_terry_weight * (means["pairwise_loss"] + centring) + others

    def _tokens_seen(self) -> int:
        total = torch.as_tensor(self._total_train_tokens, device=self.accelerator.device)
        return int(self.accelerator.gather(total[None]).sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and self._sums["train"]:
            # The log already has the joint loss, including centring, as `loss`
            means = self._take_means("train")
            means.pop("centring", None)
            means["num_tokens"] = self._tokens_seen()
            self._metrics["train"].update({name: [value] for name, value in means.items()})
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, *args, **kwargs):
        self._eval_pairs = num_pairs(inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _gather_rows(self, data: Any) -> Any:
        """Gather a batch from all ranks, pair by pair, without the duplicates that fill the last batch."""

        # accelerate truncates the last batch to the number of pairs, so each row must be one pair
        def gather(rows: torch.Tensor) -> torch.Tensor:
            if len(rows) != 2 * self._eval_pairs:  # losses, or the user's own tensors with one row per pair
                return self.accelerator.gather_for_metrics(rows)
            return self.accelerator.gather_for_metrics(
                rows.unflatten(0, (2, -1)).transpose(0, 1).contiguous()
            ).flatten(0, 1)

        return recursively_apply(gather, data)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        pairs, compute_metrics = len(dataloader.dataset), self.compute_metrics
        if self.args.dataloader_drop_last:
            pairs -= pairs % (self.args.eval_batch_size * self.args.world_size)
        if compute_metrics is not None and self.args.batch_eval_metrics:
            self.compute_metrics = lambda made, **options: compute_metrics(_chosen_first_in_batch(made), **options)
        elif compute_metrics is not None:
            self.compute_metrics = lambda made: compute_metrics(_chosen_first_in(made, pairs))
        self.gather_function = self._gather_rows
        # TRL logs these metrics but does not return them, and uses the same names for every evaluation set. Return them with the evaluation
        # set's prefix, so that `metric_for_best_model` can name them
        try:
            output: Any = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            self.compute_metrics = compute_metrics
        output = type(output)(_chosen_first(output.predictions, pairs), *output[1:])
        means = self._take_means("eval")
        # The Trainer's loss is a mean over batches, which depends on how tokens are distributed among the batches
        means["loss"] = self._joint_loss(means)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        self._metrics["eval"].clear()
        return output

    def _running_metrics(self):
        return {**super()._running_metrics(), "sums": _floats(self._sums["train"])}

    def _restore_running_metrics(self, state):
        super()._restore_running_metrics(state)
        self._sums["train"] = defaultdict(float, state["sums"])
        if not self.is_world_process_zero():
            # Each rank counts its own tokens. The checkpoint has the total, which only rank 0 restores
            self._total_train_tokens = 0


def num_pairs(batch: dict[str, Any]) -> int:
    return len(batch["reward_positions"] if "segments" in batch else batch["input_ids"]) // 2


def _floats(totals: dict[str, Any]) -> dict[str, float]:
    """Copy sums to the host. This makes the host wait for the device."""
    return {name: float(total) for name, total in totals.items()}


def _chosen_first(rows: Any, pairs: int) -> Any:
    """Reorder rows that come pair by pair, so that all chosen ones precede all rejected ones. Return arrays of other lengths unchanged."""
    if isinstance(rows, list | tuple):
        return type(rows)(_chosen_first(part, pairs) for part in rows)
    if rows is None or len(rows) != 2 * pairs:
        return rows
    halves = [rows[::2], rows[1::2]]
    return torch.cat(halves) if isinstance(rows, torch.Tensor) else np.concatenate(halves)


def _chosen_first_in(made: EvalPrediction, pairs: int) -> EvalPrediction:
    predictions, inputs = (_chosen_first(rows, pairs) for rows in (made.predictions, made.inputs))
    return EvalPrediction(predictions, made.label_ids, inputs, made.losses)


def _chosen_first_in_batch(made: EvalPrediction) -> EvalPrediction:
    first = made.predictions[0] if isinstance(made.predictions, list | tuple) else made.predictions
    # The inputs are those of this rank, and were not gathered
    return EvalPrediction(_chosen_first(made.predictions, len(first) // 2), made.label_ids, made.inputs, made.losses)


def _means(totals: dict[str, float]) -> dict[str, float]:
    pairs, tokens = totals.pop("pairs"), totals.pop("tokens", 0.0)
    lm_loss, square_reward = totals.pop("lm_loss", 0.0), totals.pop("square_reward")
    metrics = {name: totals.pop(name) for name in ("min_reward", "max_reward")}
    metrics |= {name: total / pairs for name, total in totals.items()}
    metrics["reward_std"] = max(square_reward / pairs - metrics["mean_reward"] ** 2, 0.0) ** 0.5
    if tokens:
        metrics["lm_loss"] = lm_loss / tokens
        metrics.setdefault("critique_length", tokens / (2 * pairs) - 1)  # excluding the end-of-turn token
    return metrics
