"""Training: the joint Bradley-Terry and critique loss on TRL's reward trainer."""

from .collator import DataCollatorForCLoud
from .config import CLoudTrainingConfig
from .trainer import CLoudTrainer


__all__ = ["CLoudTrainer", "CLoudTrainingConfig", "DataCollatorForCLoud"]
