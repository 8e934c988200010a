"""Stage 1's own trainer."""

import pytest
from tokenizers_for_tests import make_tokenizer
from trainers_for_tests import make_rows
from transformers import AutoModelForCausalLM

from cloud_hf import CritiqueFormat
from cloud_hf.commands.train_critique_sft import CritiqueSFTConfig, CritiqueSFTTrainer
from cloud_hf.training.encoding import encode_critiques


def test_evaluation_loss_is_the_mean_over_tokens_whatever_the_batches(base_folder, tmp_path):
    tokenizer = make_tokenizer("llama3")
    rows = encode_critiques(make_rows(7), CritiqueFormat(tokenizer), None, "error", "eval")
    losses = []
    for size in (1, 3, 14):
        args = CritiqueSFTConfig(
            str(tmp_path), per_device_eval_batch_size=size, use_cpu=True, bf16=False, report_to=[], max_length=None
        )
        model = AutoModelForCausalLM.from_pretrained(base_folder)
        trainer = CritiqueSFTTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)
