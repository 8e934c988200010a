"""TRL's supervised fine-tuning with launch checks, exact resume and throughput logs."""

from dataclasses import dataclass

from trl import SFTConfig, SFTTrainer

from .launch import check_machine
from .resume import ExactResume
from .throughput import LogsThroughput


@dataclass
class CritiqueSFTConfig(SFTConfig):
    """[`~trl.SFTConfig`] that checks the machine first, with clearer messages."""

    def __post_init__(self):
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"`max_length` is {self.max_length}; it must be at least 1, or None.")
        check_machine(self)
        super().__post_init__()


class CritiqueSFTTrainer(LogsThroughput, ExactResume, SFTTrainer):
    """[`~trl.SFTTrainer`] with exact resume and throughput in its log."""
