"""CLoud reward: an `evaluate` module that scores responses with a reward model and its critiques."""

import statistics

import datasets
import evaluate

from cloud_hf.serving.backends import AnyModelArguments, open_any_model


_DESCRIPTION = """
The mean reward that a reward model gives to responses. A CLoud model (critique-out-loud) first writes a critique of the
response and computes the reward at the end of the critique; the critiques are returned as well.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[str]`): The responses.
    prompts (`list[str]` or `list[list[dict]]`): The prompts: either all strings, or all chats (lists of messages with `role`
        and `content`) that end with a user turn.
    model (`str` or a scorer, *optional*): Hub id or folder of a CLoud, classic or scalar (`*ForSequenceClassification`) model, or
        a `cloud_hf` scorer. Defaults to the `model` that was passed to `evaluate.load`.
    num_critiques (`int`, *optional*, defaults to 1): Number of critiques per response; their rewards are averaged.
    temperature (`float`, *optional*, defaults to 0.0): Sampling temperature; 0 is greedy.
    max_new_tokens (`int`, *optional*, defaults to 1024): Maximum critique length in tokens.
    seed (`int`, *optional*): Makes sampling repeatable.
    **backend (*optional*): For a model given by name: `backend` ("transformers", "vllm" or "server"), `batch_size`, `dtype`,
        `vllm_options`, `server_url`, `api_key_env`, `label_weights`, `trust_remote_code`.
Returns:
    mean_reward (`float`): Mean of the rewards.
    rewards (`list[float]`): The reward of each response.
    reward_stds (`list[float]`): For each response, the population standard deviation of its critiques' rewards.
    critiques (`list[list[str]]`): The critiques of each response; a classic model returns `[""]`.
    finish_reasons (`list[list[str]]`): For each critique, "stop", or "length" if it was truncated at `max_new_tokens`.
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
        """Add responses and their prompts. Types are checked here, because `datasets` would convert other types to text."""
        columns = {"prompts": prompts, "predictions": predictions}
        for name, values in columns.items():
            if values is None or isinstance(values, str) or not len(values):
                raise ValueError(f"`{name}` is {values!r:.60}; give a list with one entry per response to judge.")
            columns[name] = list(values)  # `evaluate` reads `values[0]`, which a filtered pandas column may lack
        check_rows(**columns)
        super().add_batch(**columns, **others)

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
            raise ValueError("No `model` is given: pass one to `compute` or to `evaluate.load(..., model=...)`.")
        options = {
            "num_critiques": num_critiques,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }
        if isinstance(model, str):
            with open_any_model(model, AnyModelArguments(**backend)) as (scorer, _, _):
                scores = scorer.score(prompts, predictions, **options)
        elif backend:
            raise ValueError(
                f"{', '.join(backend)}: these options apply to a model given by name, but `model` is a scorer."
            )
        else:
            scores = model.score(prompts, predictions, **options)
        return {
            "mean_reward": statistics.fmean(score.reward for score in scores),
            "rewards": [score.reward for score in scores],
            "reward_stds": [score.reward_std for score in scores],
            "critiques": [list(score.critiques) for score in scores],
            "finish_reasons": [list(score.finish_reasons) for score in scores],
        }


def check_rows(prompts, predictions):
    """Raise a `ValueError` that names the row unless all predictions are text, and the prompts are either all text or all chats."""
    for row, prediction in enumerate(predictions):
        if not is_text(prediction):
            raise ValueError(f"Row {row}: `prediction` is {prediction!r:.60}; give text.")
    for row, prompt in enumerate(prompts):
        if not is_text(prompt) and not is_chat(prompt):
            raise ValueError(
                f"Row {row}: `prompt` is {prompt!r:.60}; give text, or a list of messages with `role` and `content` as text."
            )
        if is_text(prompt) != is_text(prompts[0]):
            raise ValueError(f"Row {row}: text and chats are mixed. Give all prompts as one or the other.")


def is_text(value):
    """Return whether a value is a string without lone surrogates (which JSON allows)."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def is_chat(value):
    """Return whether a value is a list of messages whose only keys are `role` and `content`, both text."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(turn, dict) and set(turn) == {"role", "content"} for turn in value)
        and all(is_text(part) for turn in value for part in turn.values())
    )
