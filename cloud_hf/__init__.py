"""Critique-out-loud reward models as ordinary Hugging Face components.

Importing the package registers [`CLoudConfig`] and [`CLoudForRewardModeling`] with transformers' Auto classes, and
[`CLoudPipeline`] as the pipeline "critique-reward". Names are imported on first use, because importing torch,
transformers and TRL takes seconds.
"""

import importlib
from typing import TYPE_CHECKING

from . import auto_classes, moved_modules


if TYPE_CHECKING:
    from .configuration_cloud import CLoudConfig
    from .critique_format import CritiqueFormat
    from .modeling_cloud import CLoudForRewardModeling
    from .pipeline import CLoudPipeline
    from .scores import Score, Scorer
    from .scoring import TransformersScorer
    from .training import CLoudOutcomeConfig, CLoudOutcomeTrainer, CLoudTrainer, CLoudTrainingConfig


__version__ = "0.2.0"

__all__ = [
    "CLoudConfig",
    "CLoudForRewardModeling",
    "CLoudOutcomeConfig",
    "CLoudOutcomeTrainer",
    "CLoudPipeline",
    "CLoudTrainer",
    "CLoudTrainingConfig",
    "CritiqueFormat",
    "Score",
    "Scorer",
    "TransformersScorer",
]

_MODULES = {
    "CLoudConfig": "configuration_cloud",
    "CLoudForRewardModeling": "modeling_cloud",
    "CLoudOutcomeConfig": "training",
    "CLoudOutcomeTrainer": "training",
    "CLoudPipeline": "pipeline",
    "CLoudTrainer": "training",
    "CLoudTrainingConfig": "training",
    "CritiqueFormat": "critique_format",
    "Score": "scores",
    "Scorer": "scores",
    "TransformersScorer": "scoring",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


moved_modules.install()
auto_classes.install()
