"""Stage 4: improve a CLoud model's critiques by rewarding those after which its reward head prefers the chosen response."""

from ..training import CLoudOutcomeConfig, CLoudOutcomeTrainer
from ..training.arguments import DataArguments, RewardModelConfig
from . import train_cloud


ARGUMENTS = (DataArguments, CLoudOutcomeConfig, RewardModelConfig)


def main(data_args: DataArguments, training_args: CLoudOutcomeConfig, model_args: RewardModelConfig):
    train_cloud.main(data_args, training_args, model_args, CLoudOutcomeTrainer)
