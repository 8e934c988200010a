"""What the training commands have in common: an interrupted run, and the card's example."""

import pytest
from models_for_tests import make_model
from trainers_for_tests import make_rows, make_trainer
from transformers import TrainerCallback

from cloud_hf.training.run import train_and_save


class Interrupt(TrainerCallback):
    """Presses Ctrl-C in the second step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("saved", [True, False])
def test_an_interrupted_run_says_what_is_saved(base_folder, tmp_path, saved, capsys):
    options = {"save_strategy": "steps", "save_steps": 1, "disable_tqdm": False} if saved else {}
    trainer = make_trainer(make_model(base_folder), tmp_path, callbacks=[Interrupt()], **options)
    says = (
        "checkpoint-1 is saved.*repeat the command with --resume_from_checkpoint true"
        if saved
        else "no checkpoint yet"
    )
    with pytest.raises(KeyboardInterrupt, match=rf"Interrupted\. Step 1 of 3; {says}"):
        train_and_save(trainer, make_rows())
    assert not capsys.readouterr().err.rpartition("\n")[2].strip()  # the bar's line has ended


@pytest.mark.parametrize(
    "options", [{"padding_free": True}, {"shared_prompt": True}, {"gradient_checkpointing": True}, {"critique": False}]
)
def test_the_example_is_what_the_saved_model_gives(base_folder, tmp_path, options):
    from cloud_hf.loading import load_reward_model

    trainer = make_trainer(str(base_folder), tmp_path, **options)
    rows = make_rows()
    train_and_save(trainer, rows)
    example = trainer.origin.example
    model, tokenizer = load_reward_model(str(tmp_path))
    [expected] = model.score([rows[0]["prompt"]], [rows[0]["chosen"]], tokenizer, max_new_tokens=256)
    assert (example.critique, example.is_cut) == (expected.critique, "length" in expected.finish_reasons)
    assert example.reward == pytest.approx(expected.reward, abs=1e-4)
    assert f"{expected.reward:.3g}"[:4] in (tmp_path / "README.md").read_text()


def test_long_and_unusable_rows_are_no_examples(base_folder, tmp_path):
    trainer = make_trainer(str(base_folder), tmp_path, max_steps=1)
    rows = make_rows(4).map(lambda row: {"prompt": row["prompt"] + "x" * 700})
    train_and_save(trainer, rows)
    assert trainer.origin.example is None and "The example is a row" not in (tmp_path / "README.md").read_text()
