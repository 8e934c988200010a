"""Evaluations made by hand: rows, rewards and the scores of a model that writes one word."""

from cloud_hf.evaluation.benchmarks import BENCHMARKS, reward_bench, rm_bench
from cloud_hf.evaluation.set_results import Evaluation
from cloud_hf.scoring import Score


def score_of(reward: float, reason: str = "stop") -> Score:
    return Score(reward, "Fine.", (reward,), ("Fine.",), 0.0, (reason,))


def evaluation(rows, rewards, module=reward_bench, dropped=0) -> Evaluation:
    scores = [[score_of(reward) for reward in row] for row in rewards]
    return Evaluation(
        "bench",
        "A bench",
        module.score(rows, rewards),
        rows,
        scores,
        dropped,
        shortened=1,
        benchmark=BENCHMARKS["rm_bench" if module is rm_bench else "reward_bench"],
    )
