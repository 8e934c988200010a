"""Stage 4: improve a CLoud model's critiques by rewarding those that lead it to the right preference."""

from ..training import CLoudOutcomeConfig, CLoudOutcomeTrainer
from ..training.arguments import DataArguments, RewardModelConfig
from . import train_cloud


ARGUMENTS = (DataArguments, CLoudOutcomeConfig, RewardModelConfig)


def main(data_args: DataArguments, training_args: CLoudOutcomeConfig, model_args: RewardModelConfig):
    train_cloud.main(data_args, training_args, model_args, CLoudOutcomeTrainer)
