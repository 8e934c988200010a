import math

from goldens import read

from cloud_hf.data.verdicts import read_verdict, winner
from cloud_hf.evaluation.benchmarks.reward_bench import SECTIONS, score_reward_bench


def test_verdicts(compare):
    for case in read("d_judge/get_score.json"):
        verdict = read_verdict(case["judgement"], rule="agreed")
        compare.exact(verdict, case["score"], case)
        compare.exact(verdict is None, case["try_again"], case)


def test_winners(compare):
    for case in read("d_judge/check_winner.json"):
        compare.exact(winner(case["game0"], case["game1"]), case["winner"], case)


def test_pooled_reward_bench(compare):
    golden = read("d_judge/reward_bench.json")
    compare.exact({section: list(subsets) for section, subsets in SECTIONS.items()}, golden["mapping"])
    ids = [row["id"] for row in golden["metadata"]]
    subsets = [row["subset"] for row in golden["metadata"]]
    chosen, rejected = ([golden["rewards"][f"{id}-{side}"] for id in ids] for side in ("chosen", "rejected"))
    scores = score_reward_bench(subsets, chosen, rejected)
    compare.exact(scores.counts, golden["counts"])
    assert scores.ignored == 1
    for name, score in golden["scores"].items():
        compare.close(scores.pooled[name], score, name, atol=1e-9)

    in_chat = [index for index, subset in enumerate(subsets) if subset in SECTIONS["Chat"]]
    scores = score_reward_bench(*([column[index] for index in in_chat] for column in (subsets, chosen, rejected)))
    for name, score in golden["chat_only_scores"].items():
        ours = scores.pooled[name]
        compare.exact(None if math.isnan(ours) else ours, score, name)
