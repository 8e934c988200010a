"""The arms of the study, defined by how each reward model differs from a CLoud model trained on its own critiques."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """
    One reward model.

    Args:
        title (`str`):
            Name of the arm in the report.
        start (`str`):
            Model from which training starts: `"base"`, `"critic"` (stage 1), or `"cloud"` (stage 3).
        critiques (`str`, *optional*):
            Critiques to train on: `"self"`, `"oracle"`, `"shuffled"` (from other rows, of the same length) or `"blank"`; `None` trains
            a classic model.
        passes (`str`):
            Passes over the pairs: `"stage3"`, `"all"` (as many as stages 1 and 3 together), or `"compute:ARM"` (the fewest
            that cost at least as much as training ARM from the same start).
        lm_weight (`float`):
            λ, the weight of the critique loss.
        frozen (`bool`):
            Train only the reward head.
        blank_prompt (`bool`):
            Hide the prompt. In this control, a model must stay at chance.
        member (`int`):
            Index of the model in an ensemble, which changes the model's seed.
        outcome (`dict[str, Any]`):
            Options of `CLoudOutcomeConfig`, if the arm uses that trainer.
    """

    title: str
    start: str = "critic"
    critiques: str | None = "self"
    passes: str = "stage3"
    lm_weight: float = 1.25
    frozen: bool = False
    blank_prompt: bool = False
    member: int = 0
    outcome: dict[str, Any] = field(default_factory=dict)


def classic(title: str, **changes: Any) -> Arm:
    return Arm(title, start="base", critiques=None, **changes)


MEMBERS = (1, 2, 3, 4)
LAMBDAS = (0.0, 0.25, 0.75, 2.5)  # 1.25 is the arm `cloud`

# In the order in which they run
CORE = {
    "classic": classic("classic"),
    "cloud": Arm("CLoud, own critiques"),
    "classic_compute": classic("classic, compute of all CLoud stages", passes="compute:cloud"),
    "off_policy": Arm("CLoud, oracle critiques in stage 3", critiques="oracle"),
    "no_stage1": Arm("CLoud without stage 1", start="base", critiques="oracle", passes="all"),
    "shuffled": Arm("critiques of other rows", critiques="shuffled"),
    "blank": Arm("blank tokens", critiques="blank"),
    "lambda_0": Arm("CLoud, λ = 0", lm_weight=0.0),
}
OTHERS = {
    "frozen": Arm("head on a frozen critic", lm_weight=0.0, frozen=True),
    **{f"lambda_{weight}": Arm(f"CLoud, λ = {weight}", lm_weight=weight) for weight in LAMBDAS[1:]},
    "blank_prompt": classic("classic, prompts hidden", blank_prompt=True),
    **{f"classic_{member}": classic(f"classic, member {member}", member=member) for member in MEMBERS},
}
OUTCOME = {
    "online": Arm("online CLoud", outcome={"num_generations": 2, "policy_weight": 0.0, "beta": 0.0}),
    "stage4": Arm("stage 4", start="cloud", outcome={"num_generations": 4, "policy_weight": 1.0}),
    "stage4_no_policy": Arm(
        "stage 4, no policy term", start="cloud", outcome={"num_generations": 4, "policy_weight": 0.0}
    ),
    "longer": Arm("stage 3 with the compute of stage 4", start="cloud", passes="compute:stage4"),
}
ARMS = {**CORE, **OTHERS, **OUTCOME}
