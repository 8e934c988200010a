"""Training: the joint Bradley-Terry and critique loss, built on TRL's reward trainer."""

from .collator import DataCollatorForCLoud
from .config import CLoudTrainingConfig
from .outcome import CLoudOutcomeTrainer
from .outcome_config import CLoudOutcomeConfig
from .trainer import CLoudTrainer


__all__ = ["CLoudOutcomeConfig", "CLoudOutcomeTrainer", "CLoudTrainer", "CLoudTrainingConfig", "DataCollatorForCLoud"]
