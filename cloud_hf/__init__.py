"""Critique-out-loud reward models as ordinary Hugging Face parts.

Importing the package registers [`CLoudConfig`] and [`CLoudForRewardModeling`] with transformers' Auto classes, and
[`CLoudPipeline`] as the pipeline "critique-reward".
"""

from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_cloud import CLoudConfig
from .critique_format import CritiqueFormat
from .modeling_cloud import CLoudForRewardModeling
from .moved_modules import install as install_moved_modules
from .pipeline import CLoudPipeline
from .scoring import Score, Scorer, TransformersScorer


if TYPE_CHECKING:
    from .training import CLoudTrainer, CLoudTrainingConfig


__version__ = "0.1.0"

__all__ = [
    "CLoudConfig",
    "CLoudForRewardModeling",
    "CLoudPipeline",
    "CLoudTrainer",
    "CLoudTrainingConfig",
    "CritiqueFormat",
    "Score",
    "Scorer",
    "TransformersScorer",
]

install_moved_modules()
AutoConfig.register("cloud", CLoudConfig)
AutoModel.register(CLoudConfig, CLoudForRewardModeling)
AutoModelForSequenceClassification.register(CLoudConfig, CLoudForRewardModeling)
CLoudConfig.register_for_auto_class()
CLoudForRewardModeling.register_for_auto_class("AutoModel")
PIPELINE_REGISTRY.register_pipeline(
    "critique-reward", pipeline_class=CLoudPipeline, pt_model=AutoModelForSequenceClassification, type="text"
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    # TRL takes seconds to import, and only training needs it
    if name in ("CLoudTrainer", "CLoudTrainingConfig"):
        from . import training

        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
