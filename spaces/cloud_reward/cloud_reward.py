"""CLoud reward: an evaluate module that judges responses with a reward model and its critiques."""

import statistics

import datasets
import evaluate

from cloud_hf.serving.backends import BackendArguments, open_backend


_DESCRIPTION = """
The mean reward that a reward model gives to responses. A CLoud model (critique-out-loud) first writes a critique of the
response and reads the reward at its end; the critiques come with the numbers.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[str]`): The responses.
    prompts (`list[str]` or `list[list[dict]]`): What they answer: strings, or chats of messages with `role` and `content`
        that end on the user's turn. One kind in a run.
    model (`str` or a scorer, *optional*): Hub id or folder of a CLoud or classic model, or a scorer of `cloud_hf` that is
        open already. Defaults to the `model` that the module was loaded with.
    num_critiques (`int`, *optional*, defaults to 1): Critiques per response, whose rewards are averaged.
    temperature (`float`, *optional*, defaults to 0.0): Sampling temperature; 0 is greedy.
    max_new_tokens (`int`, *optional*, defaults to 1024): Longest critique in tokens.
    seed (`int`, *optional*): Makes sampling repeatable.
    **backend (*optional*): How a named model is run: `backend` ("transformers", "vllm" or "server"), `batch_size`, `dtype`,
        `vllm_options`, `server_url`, `api_key_env`.
Returns:
    mean_reward (`float`): Mean of the rewards.
    rewards (`list[float]`): The reward of each response.
    reward_stds (`list[float]`): How far the rewards of its critiques spread (population standard deviation).
    critiques (`list[list[str]]`): The critiques of each response; `[""]` from a classic model.
    finish_reasons (`list[list[str]]`): For each critique "stop", or "length" if it was cut at `max_new_tokens`.
Examples:
    >>> import evaluate
    >>> cloud_reward = evaluate.load("spaces/cloud_reward")
    >>> results = cloud_reward.compute(
    ...     prompts=["What is 2+2?"], predictions=["4"], model="runs/quickstart/cloud", max_new_tokens=128
    ... )
    >>> len(results["rewards"]), len(results["critiques"][0]), results["mean_reward"] == results["rewards"][0]
    (1, 1, True)
"""

_CITATION = """
@article{ankner2024cloud,
  title={Critique-out-Loud Reward Models},
  author={Ankner, Zachary and Paul, Mansheej and Cui, Brandon and Chang, Jonathan D. and Ammanabrolu, Prithviraj},
  journal={arXiv preprint arXiv:2408.11791},
  year={2024}
}
"""

_MESSAGES = [{"role": datasets.Value("string"), "content": datasets.Value("string")}]


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class CloudReward(evaluate.Metric):
    """Rewards and critiques of responses."""

    def __init__(self, *args, model=None, **kwargs):
        self.model = model
        super().__init__(*args, **kwargs)

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": datasets.Value("string"), "prompts": prompt})
                for prompt in (datasets.Value("string"), _MESSAGES)
            ],
            reference_urls=["https://arxiv.org/abs/2408.11791"],
        )

    def add(self, *, prediction=None, **columns):
        """Add one response and its prompt."""
        row = {"predictions": prediction, **columns}
        self.add_batch(**{name: [value] for name, value in row.items()})

    def add_batch(self, *, predictions=None, prompts=None, **others):
        """Add responses and their prompts; checked here, since what is no text would be made one without a word."""
        _check_texts("predictions", predictions)
        _check_texts("prompts", prompts, chats=True)
        super().add_batch(predictions=predictions, prompts=prompts, **others)

    def _compute(
        self,
        predictions,
        prompts,
        model=None,
        num_critiques=1,
        temperature=0.0,
        max_new_tokens=1024,
        seed=None,
        **backend,
    ):
        model = self.model if model is None else model
        if model is None:
            raise ValueError("No `model` is given: name one to `compute`, or to `evaluate.load(..., model=...)`.")
        options = {
            "num_critiques": num_critiques,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }
        if isinstance(model, str):
            with open_backend(model, BackendArguments(**backend)) as (scorer, _, _):
                scores = scorer.score(prompts, predictions, **options)
        elif backend:
            raise ValueError(f"{', '.join(backend)}: these are for a model that is named, and `model` is a scorer.")
        else:
            scores = model.score(prompts, predictions, **options)
        return {
            "mean_reward": statistics.fmean(score.reward for score in scores),
            "rewards": [score.reward for score in scores],
            "reward_stds": [score.reward_std for score in scores],
            "critiques": [list(score.critiques) for score in scores],
            "finish_reasons": [list(score.finish_reasons) for score in scores],
        }


def _check_texts(name, column, chats=False):
    """Raise `ValueError` unless a column holds strings; `prompts` may be chats instead, all of them."""
    if column is None or isinstance(column, str) or not len(column):
        raise ValueError(f"`{name}` is {column!r:.60}; give a list with one entry for each response, at least one.")
    chats = chats and not isinstance(column[0], str)
    for row, value in enumerate(column):
        if chats and not _is_chat(value):
            raise ValueError(
                f"Row {row}: `{name}` holds {value!r:.60}; give all prompts as strings, or all as lists of messages with `role` and "
                "`content` alone, as strings."
            )
        if not chats and not isinstance(value, str):
            kind = ", as in the rows before: one kind in a run" if isinstance(value, list) else ""
            raise ValueError(f"Row {row}: `{name}` holds {value!r:.60}; give a string{kind}.")


def _is_chat(value):
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and all(isinstance(text, str) for text in message.values())
        for message in value
    )
