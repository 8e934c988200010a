"""Probe batch position: chats must get the same rewards whether they are scored alone, in batches or in shuffled batches."""

from collections.abc import Iterator, Sequence

import numpy as np

from ...data.journal import Journal, key_of
from ...scoring import Scorer
from ..stats import Estimate, mean_estimate
from .probe import REWARD, SHARE, Measure, Probe, ProbeRow, order_changes, share_of_rows


MOST_ROWS = 32  # scoring one chat at a time is slow


def probe_batches(
    rows: Sequence[ProbeRow], scorer: Scorer, journal: Journal, batch_size: int, seed: int, options: dict
) -> list[Measure]:
    """
    Score rows again, alone and together with other chats. See `Probe.rescore` for the arguments. `scorer` is the backend itself, because a
    [`JournaledScorer`] would return its stored rewards; `journal` stores complete batches, so a resumed run reports the same differences.
    A chat's reward is the mean over its critiques.
    """
    if not rows:
        return []
    chats = [(row.row.prompt, response) for row in rows for response in row.row.responses]
    in_order = np.arange(len(chats))
    shuffled = np.random.default_rng(seed).permutation(len(chats))

    def score(order: np.ndarray, size: int) -> np.ndarray:
        rewards = np.empty(len(chats))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            rewards[places] = _score_batch([chats[place] for place in places], scorer, journal, options)
        return rewards

    alone = score(in_order, 1)
    measures = []
    for label, order in (("in batches", in_order), ("in shuffled batches", shuffled)):
        together = score(order, batch_size)
        gaps = np.abs(together - alone)
        measures += [
            Measure(f"largest difference, {label}", REWARD, Estimate(float(gaps.max()), len(chats))),
            Measure(f"mean difference, {label}", REWARD, mean_estimate(gaps.tolist())),
        ]
        changes = [order_changes(margins) for margins in _margins(rows, alone, together)]
        orders, ties = zip(*changes, strict=True)
        measures.append(Measure(f"order of a pair changes, {label}", SHARE, share_of_rows(orders)))
        measures.append(Measure(f"tie arises or ends, {label}", SHARE, share_of_rows(ties)))
    return measures


def _score_batch(chats: list[tuple], scorer: Scorer, journal: Journal, options: dict) -> list[float]:
    key = key_of("batch", chats, options)
    if key not in journal:
        prompts, responses = zip(*chats, strict=True)
        scores = scorer.score(list(prompts), list(responses), **options)
        journal.add(key, {"rewards": [score.reward for score in scores]})
    return journal[key]["rewards"]


def _margins(rows: Sequence[ProbeRow], alone: np.ndarray, together: np.ndarray) -> Iterator[list[tuple[float, float]]]:
    """
    Yield a list for each row. For each pair, the list contains two margins: scored alone, and scored in a batch. `alone` and `together`
    contain the rewards of all rows' responses.
    """
    start = 0
    for row in rows:
        places = [(start + right, start + wrong) for right, wrong in row.pairs()]
        yield [(alone[right] - alone[wrong], together[right] - together[wrong]) for right, wrong in places]
        start += len(row.row.responses)


BATCH_POSITION = Probe(
    title="Position in the batch",
    about=(
        f"At most {MOST_ROWS} unaltered rows, about equally many of each set, are scored one chat at a time, then in batches in "
        "their order, then in batches of shuffled chats. Each difference is the absolute difference between a chat's rewards in a "
        "batch and alone. "
        "They should be 0 up to rounding, which is below 0.001 in float32 and more in bfloat16."
    ),
    rescore=probe_batches,
    most_rows=MOST_ROWS,
)
