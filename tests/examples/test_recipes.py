import pytest
from scripts_for_tests import EXAMPLES, command_module
from trl import TrlParser, get_peft_config

from cloud_hf.training.lora import check_dropout


SCRIPTS = {
    "base": "make_shell_game",
    "critique_sft": "train_critique_sft",
    "self_critiques": "build_self_critiques",
    "cloud": "train_cloud",
    "outcome": "train_cloud_outcome",
    "classic": "train_classic",
    "scoring": "evaluate_rewards",
    "grpo": "grpo_with_cloud",
}
# What the recipes leave to the command line
REQUIRED = {
    "make_shell_game": ["--data_dir", "d", "--output_dir", "o"],
    "build_self_critiques": ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"],
    "evaluate_rewards": ["--models", "a", "b", "--dataset_name", "d", "--output_dir", "o"],
    "grpo_with_cloud": ["--reward_model", "r", "--model_name_or_path", "m", "--output_dir", "o"],
}


def parse(script, *options):
    types = command_module(script).ARGUMENTS
    options = [*REQUIRED.get(script, ["--dataset_name", "d", "--output_dir", "o"]), *options]
    # A machine without a GPU cannot build the training arguments of a GPU recipe otherwise
    if script.startswith(("train", "make")):
        options += ["--use_cpu", "True"]
    return TrlParser(types).parse_args_and_config(args=options, fail_with_unknown_args=True)


@pytest.mark.parametrize(
    "recipe", sorted(EXAMPLES.glob("configs/*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_recipe_is_read_by_its_script(recipe, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    parsed = parse(SCRIPTS[recipe.stem], "--config", str(recipe))
    if recipe.stem in ("cloud", "classic"):
        _, training_args, model_args = parsed
        check_dropout(get_peft_config(model_args), training_args.disable_dropout)
    if recipe.stem in ("cloud", "classic", "critique_sft") and recipe.parent.name.startswith("llama3"):
        training_args = next(args for args in parsed if hasattr(args, "learning_rate"))
        assert (training_args.adam_beta2, training_args.weight_decay, training_args.max_length) == (0.95, 1.0, 2048)


@pytest.mark.parametrize("script", ["train_cloud", "train_classic"])
def test_an_adapter_of_reward_training_has_no_dropout_unless_it_is_asked_for(script):
    """TRL's default of 0.05 would be refused together with its `disable_dropout`."""
    _, training_args, model_args = parse(script, "--use_peft", "True")
    assert training_args.disable_dropout and model_args.lora_dropout == 0
    assert parse(script, "--use_peft", "True", "--lora_dropout", "0.1")[2].lora_dropout == 0.1


def test_an_unknown_key_in_a_recipe_is_an_error(tmp_path):
    (tmp_path / "bad.yaml").write_text("lm_loss_wieght: 1.0\n")
    with pytest.raises(ValueError, match="lm_loss_wieght"):
        parse("train_cloud", "--config", str(tmp_path / "bad.yaml"))
