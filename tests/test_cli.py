"""The `cloud-hf` command: its list, how it finds commands, and mistakes as one sentence with status 2."""

import contextlib
import io
import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time

import pytest
from models_for_tests import make_model
from scripts_for_tests import EXAMPLES
from tokenizers_for_tests import make_tokenizer

from cloud_hf import cli


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Write a command's module and return its name."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py"])

    def write(body: str) -> str:
        name = f"command_{abs(hash(body))}"
        (tmp_path / f"{name}.py").write_text(body)
        return name

    return write


def ended(call, *arguments) -> tuple[int, str]:
    """How a call ended, and what it wrote to stderr."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            call(*arguments)
        except SystemExit as end:
            return end.code, stderr.getvalue()
    return 0, stderr.getvalue()


def check_sentence(found: tuple[int, str], says: str):
    status, stderr = found
    assert status == 2, stderr
    assert says in stderr.splitlines()[-1] and "Traceback" not in stderr, stderr


def run_script(script: str, *arguments):
    """As `python examples/SCRIPT.py ARGUMENTS`, in this process."""
    sys.argv = [str(EXAMPLES / f"{script}.py"), *map(str, arguments)]
    runpy.run_path(sys.argv[0], run_name="__main__")


# ------------------------------------------------------------------------------------------------------ the runner


def test_help_lists_the_commands_fast():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "cloud_hf", "--help"], capture_output=True, text=True, check=True)
    # 0.2 s; more on a machine that is busy
    assert time.monotonic() - started < 15
    lines = done.stdout.splitlines()
    for name, (_, summary) in cli.COMMANDS.items():
        assert any(line.split()[:1] == [name] and line.endswith(summary) for line in lines)


def test_every_module_exists():
    from importlib.util import find_spec

    assert all(find_spec(module) for module, _ in cli.COMMANDS.values())


def test_an_unknown_command_is_named():
    check_sentence(ended(cli.main, ["scroe"]), "`scroe` is not a command; it must be one of score, serve")


def test_a_command_gets_its_arguments(command, monkeypatch):
    name = command("def main(arguments):\n    raise SystemExit(' '.join(arguments))")
    monkeypatch.setitem(cli.COMMANDS, "echo", (name, ""))
    assert ended(cli.main, ["echo", "--one", "2"]) == (2, "cloud-hf echo: --one 2\n")
    assert ended(cli.main, ["--debug", "echo", "x", "--debug", "underflow_overflow"])[1].endswith(
        "x --debug underflow_overflow\n"
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('`limit` is 0;\\n it must be more.')", "`limit` is 0; it must be more."),
        ("open('absent.txt')", "absent.txt: No such file or directory."),
        ("raise OSError('Cannot listen on port 80.')", "Cannot listen on port 80."),
        ("import yaml\nyaml.safe_load('a: [')", "line 1, column 5"),
        ("raise SystemExit('2 shards differ.')", "2 shards differ."),
        ("from cloud_hf.data.journal import JournalError\nraise JournalError('Not a journal.')", "Not a journal."),
        ("raise ImportError('Needs bitsandbytes.')", "Needs bitsandbytes."),
        (
            "import torch\nraise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity "
            "of 79.1 GiB of which 1.20 GiB is free. Of the')",
            "The GPU has too little memory: tried to allocate 2.50 GiB, 1.20 GiB was free. For training, lower",
        ),
        (
            "exec('import pydantic; pydantic.TypeAdapter(dict[str, int]).validate_python({\"block_size\": \"x\"})', {'__name__': 'vllm.config'})",
            "vLLM rejected the options. `block_size` is 'x': Input should be a valid integer",
        ),
        (
            "exec('raise ValueError(\"Bfloat16 is not supported.\")', {'__name__': 'vllm.config'})",
            "Bfloat16 is not supported.",
        ),
        (
            "exec('raise RuntimeError(\"Engine core initialization failed. See above.\")', {'__name__': 'vllm.v1'})",
            "vLLM's engine did not start; its log above shows the reason. If there is too little memory, lower `max_model_len`",
        ),
        (
            "raise ModuleNotFoundError(name='datasketch')",
            "`datasketch` is not installed. Install it with: pip install 'cloud-hf[data]'",
        ),
    ],
)
def test_a_mistake_is_one_sentence(command, body, says):
    # As if the command were one of ours
    name = command("__name__ = 'cloud_hf.commands.made_up'\ndef main(arguments):\n    " + body.replace("\n", "\n    "))
    status, stderr = ended(cli.run, name, [])
    assert status == 2 and stderr.startswith("script.py: ") and says in stderr and stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("1 + ''", TypeError),
        ("assert False", AssertionError),
        ("raise RuntimeError('CUDA error')", RuntimeError),
        ("import numpy\n    numpy.zeros(2) + numpy.zeros(3)", ValueError),
        ("import absent_module", ModuleNotFoundError),
        ("from cloud_hf.cli import absent", ImportError),
    ],
)
def test_a_programming_error_keeps_its_traceback(command, body, error):
    with pytest.raises(error):
        cli.run(command(f"def main(arguments):\n    {body}"), [])


def test_debug_shows_the_traceback(command):
    with pytest.raises(FileNotFoundError):
        cli.run(command("def main(arguments):\n    assert not arguments\n    open('absent.txt')"), ["--debug"])


def test_an_interrupt_has_its_own_status(command):
    assert ended(cli.run, command("def main(arguments):\n    raise KeyboardInterrupt"), []) == (
        130,
        "script.py: Interrupted.\n",
    )


# ------------------------------------------------------------------------------------------------- real commands


ROW = {"prompt": "1 + 1?", "chosen": "2", "rejected": "3", "chosen_feedback": "Good.", "rejected_feedback": "Bad."}
ROWS = {
    "pairs": [ROW],
    "misspelt": [{"prompt": "1 + 1?", "choosen": "2", "rejected": "3"}],
    "without-critiques": [{name: ROW[name] for name in ("prompt", "chosen", "rejected")}],
    "empty-response": [{**ROW, "chosen": ""}],
    "empty-critique": [{**ROW, "chosen_feedback": " "}],
    "image": [{**ROW, "prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}],
    "mixed": [ROW, {**ROW, "prompt": [{"role": "user", "content": "1 + 1?"}]}],
    "margin": [{**ROW, "margin": "big"}],
    "overlong": [{**ROW, "prompt": "word " * 2000}],
    "same-id": [{**ROW, "id": "a"}, {**ROW, "id": "a"}],
    "problems": [{"prompt": "1 + 1?", "responses": ["2", "3"], "correct": [1]}],
    "responses": [{"prompt": "Hi", "response": "Hello"}, {"prompt": "Hi"}],
    "latin": [{**ROW, "prompt": "\N{LATIN SMALL LETTER E WITH ACUTE}"}],
}


@pytest.fixture(scope="module")
def files(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, rows in ROWS.items():
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="latin-1")
    (folder / "latin.csv").write_bytes(b"prompt,chosen,rejected\n\xe9,a,b\n")
    for name in ("rows.xlsx", "text.jsonl", "torn.jsonl.gz", "torn.parquet", "bad.jinja"):
        (folder / name).write_text("{% for")
    (folder / "bad.yaml").write_text("dataset_name: [\n")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "key.yaml").write_text("lm_loss_wieght: 1.0\n")
    (folder / "required.yaml").write_text("dataset_nmae: pairs.jsonl\n")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe")
    (folder / "folder").mkdir()
    shutil.copytree(base_folder, folder / "torn")
    (folder / "torn/model.safetensors").write_bytes((base_folder / "model.safetensors").read_bytes()[:5000])
    model, tokenizer = make_model(base_folder, critique=False), make_tokenizer("llama3")
    for saved in (model, tokenizer):
        saved.save_pretrained(folder / "classic")
    return folder


CPU = ("--use_cpu", "--bf16", "False", "--report_to", "none", "--per_device_train_batch_size", "1")
TRAIN = ("--output_dir", "{files}/out", *CPU)
PAIRS = ("--dataset_name", "{files}/pairs.jsonl")
BASE = ("--model_name_or_path", "{base}")
ABSENT = ("--model_name_or_path", "{files}/absent")
CLASSIC = ("--models", "{files}/classic", "--output_dir", "{files}/evaluation")
OUT = ("--output_dir", "{files}/built")
NOWHERE = ("--base_url", "http://127.0.0.1:9", "--model", "x", "--max_retries", "0")


def dataset(name):
    return ("--dataset_name", f"{{files}}/{name}")


MISTAKES = [
    # Files
    ("train_cloud", ("--dataset_name", "absent.jsonl", *BASE, *TRAIN), "no such file"),
    ("train_classic", (*dataset("rows.xlsx"), *BASE, *TRAIN), "dataset files must end in .jsonl"),
    ("train_classic", (*dataset("text.jsonl"), *BASE, *TRAIN), "text.jsonl cannot be read as json"),
    ("train_classic", (*dataset("torn.jsonl.gz"), *BASE, *TRAIN), "torn.jsonl.gz cannot be read as json: Not a gzipped file"),
    ("train_classic", (*dataset("torn.parquet"), *BASE, *TRAIN), "torn.parquet cannot be read as parquet"),
    ("train_classic", (*dataset("folder"), *BASE, *TRAIN), "is a folder, but contains no data files"),
    ("train_critique_sft", ("--config", "{files}/bad.yaml", *TRAIN), "bad.yaml"),
    ("train_critique_sft", ("--config", "{files}/absent.yaml", *TRAIN), "absent.yaml: No such file or directory."),
    ("train_critique_sft", ("--config", "{files}/list.yaml", *TRAIN), "must contain a YAML mapping"),
    ("evaluate_rewards", (*CLASSIC[:2], *PAIRS, "--output_dir", "{files}/pairs.jsonl"), "pairs.jsonl: File exists."),
    ("evaluate_rewards", (*CLASSIC, "--benchmarks", "rm_bench={files}/none*"), "matches no data file"),
    ("merge_shards", ("--shards", "{files}/absent", *OUT), "absent"),
    ("build_oracle_critiques", (*PAIRS, *OUT, *NOWHERE, "--critic_prompt_file", "{files}/absent.txt"), "absent.txt: No such file"),
    # Columns
    ("train_classic", (*dataset("misspelt.jsonl"), *BASE, *TRAIN), "rename 'choosen' to 'chosen'?"),
    ("train_cloud", (*dataset("without-critiques.jsonl"), *BASE, *TRAIN), "column(s) chosen_feedback, rejected_feedback"),
    ("evaluate_rewards", (*CLASSIC, *PAIRS, "--group_column", "topic"), "needs the column(s) topic"),
    ("best_of_n", (*CLASSIC, *PAIRS), "needs the column(s) responses, correct"),
    ("build_prompts", (*dataset("misspelt.jsonl"), *OUT, "--prompt_column", "question"), "needs the column(s) question"),
    # Rows and encodings
    ("train_classic", (*dataset("empty-response.jsonl"), *BASE, *TRAIN), "row 0: `chosen` is empty. Bad rows: 1 of 1."),
    ("train_cloud", (*dataset("empty-critique.jsonl"), *BASE, *TRAIN), "`chosen_feedback` contains an empty critique"),
    ("train_classic", (*dataset("image.jsonl"), *BASE, *TRAIN), "CLoud models judge text only"),
    ("train_classic", (*dataset("mixed.jsonl"), *BASE, *TRAIN), "mixes rows of different forms"),
    ("train_classic", (*dataset("margin.jsonl"), *BASE, *TRAIN), "`margin` is 'big'"),
    ("train_classic", (*dataset("overlong.jsonl"), *BASE, *TRAIN), "To keep 95%, 99% or 100% of the rows, use a limit of"),
    ("train_classic", (*dataset("latin.csv"), *BASE, *TRAIN), "latin.csv cannot be read as csv: it is not UTF-8"),
    ("evaluate_rewards", (*CLASSIC, *dataset("latin.jsonl")), "row 0: it is not UTF-8"),
    ("evaluate_rewards", (*CLASSIC, "--best_of_n", "{files}/problems.jsonl"), "give one value for each of the 2 responses"),
    ("build_oracle_critiques", (*dataset("same-id.jsonl"), *OUT, *NOWHERE), "row 0 has the same id"),
    ("build_self_critiques", (*dataset("overlong.jsonl"), *BASE, *OUT), "1 of 1 rows are over-long; the longest needs"),
    ("train_cloud", ("--config", "{files}/binary.yaml", *PAIRS, *TRAIN), "is not UTF-8"),
    # Options
    ("train_cloud", (*PAIRS, *TRAIN, "--lm_loss_wieght", "1"), "Unknown option `--lm_loss_wieght`"),
    ("train_cloud", TRAIN, "The following arguments are required: --dataset_name"),
    ("train_cloud", ("--config", "{files}/key.yaml", *PAIRS, *TRAIN), "Unknown key `lm_loss_wieght`"),
    ("train_cloud", ("--config", "{files}/required.yaml", *TRAIN), "Unknown key `dataset_nmae`"),
    ("train_cloud", (*PAIRS, *TRAIN, "--config"), "`--config` needs the name of a YAML file."),
    ("train_cloud", (*PAIRS, *BASE, *TRAIN, "--learning_rate", "-1"), "`learning_rate` is -1.0; it must be at least 0"),
    ("train_cloud", (*PAIRS, *BASE, *TRAIN, "--critique_role", "system"), "`critique_role` is 'system'"),
    ("train_cloud_outcome", (*PAIRS, *BASE, *TRAIN, "--num_generations", "1"), "`num_generations` is 1, but a critique's return"),
    ("train_classic", (*PAIRS, *BASE, *TRAIN, "--lm_loss_chunks", "2"), "no critique loss"),
    ("train_classic", (*PAIRS, *BASE, *TRAIN[:-1], "0"), "`per_device_train_batch_size` is 0; it must be at least 1"),
    ("train_classic", (*PAIRS, *BASE, *TRAIN, "--lora_r", "8"), "without `use_peft` no adapter is created"),
    ("train_critique_sft", (*PAIRS, *BASE, *TRAIN, "--critique_prompt", ""), "`critique_prompt` is empty"),
    ("train_critique_sft", (*PAIRS, *BASE, *TRAIN, "--use_liger_kernel"), "`use_liger_kernel` is on, but Liger's kernels are not installed"),
    ("train_cloud", (*PAIRS, *BASE, *TRAIN, "--use_liger_kernel"), "`use_liger_kernel` would have no effect"),
    ("train_cloud", (*PAIRS, *BASE, *TRAIN[:2]), "`bf16` is on (the default), but no GPU supports bfloat16"),
    ("train_cloud", (*PAIRS, *BASE, *TRAIN, "--attn_implementation", "flash_attention_2"), "'flash_attention_2', which supports training only on GPUs"),
    ("train_classic", (*PAIRS, *BASE, *TRAIN, "--attn_implementation", "flex_attention"), "'flex_attention', which supports training only on GPUs"),
    ("evaluate_rewards", (*CLASSIC, *PAIRS, "--dtype", "float8_e4m3fn"), "`dtype` is 'float8_e4m3fn'; use auto"),
    ("merge_adapter", (*BASE, *OUT, "--dtype", "int8"), "`dtype` is 'int8'; use auto, float32"),
    ("evaluate_rewards", CLASSIC, "There is nothing to score"),
    ("evaluate_rewards", (*CLASSIC, "--benchmarks", "rewardbench"), "Did you mean 'reward_bench'?"),
    ("best_of_n", (*CLASSIC, "--largest_n", "x"), "invalid int value: 'x'"),
    ("build_preferences", (*PAIRS, *OUT, "--gen_base_ulr", "http://127.0.0.1:1"), "Unknown option `--gen_base_ulr`."),
    ("build_preferences", (*PAIRS, *OUT), "arguments are required: --gen_base_url"),
    ("prepare_preferences", (*PAIRS, *OUT, "--layout", "ultra"), "`layout` is 'ultra'; it must be one of auto, ultrafeedback"),
    ("prepare_preferences", (*PAIRS, *OUT, "--margins", "True"), "`margins` needs ratings"),
    ("build_prompts", ("--sources", "ultra", *OUT), "`sources` names ultra"),
    ("build_self_critiques", (*PAIRS, *BASE, *OUT, "--shard", "4/4"), "`shard` is '4/4'"),
    ("build_official_ultra_llama", ("--mode", "other", *OUT), "`mode` is 'other'"),
    ("make_shell_game", ("--data_dir", "{files}/built"), "arguments are required: --num_answers"),
    ("quickstart", ("--seed", "x"), "invalid int value: 'x'"),
    ("quickstart", ("--output_dir", "{files}/pairs.jsonl"), "Not a directory."),
    ("shell_game_report", ("{files}/absent",), "report.json: No such file"),
    # Models
    ("train_cloud", (*PAIRS, *TRAIN), "`model_name_or_path` is missing"),
    ("train_cloud", (*PAIRS, *ABSENT, *TRAIN), "There is no folder"),
    ("train_cloud_outcome", (*PAIRS, *BASE, *TRAIN), "is a language model without a reward head"),
    ("train_classic", (*PAIRS, "--model_name_or_path", "{files}/folder", *TRAIN), "neither config.json nor adapter_config.json"),
    ("train_classic", (*PAIRS, "--model_name_or_path", "{files}/torn", *TRAIN), "A weight file is damaged"),
    ("train_classic", (*PAIRS, *BASE, *TRAIN, "--chat_template_path", "{files}/bad.jinja"), "The chat template refuses"),
    ("train_critique_sft", (*PAIRS, "--model_name_or_path", "{files}/classic", *TRAIN), "starts from a language model"),
    ("evaluate_rewards", ("--models", "{files}/absent", *OUT, *PAIRS), "absent"),
    ("merge_adapter", (*BASE, *OUT), "not an adapter"),
    ("merge_adapter", (*ABSENT, *OUT), "There is no folder"),
    ("build_self_critiques", (*ABSENT, *PAIRS, *OUT), "absent"),
    # Servers
    ("build_oracle_critiques", (*PAIRS, *OUT, *NOWHERE), "does not answer"),
    ("build_oracle_critiques", (*PAIRS, *OUT, "--base_url", "nonsense"), "must start with http:// or https://"),
    ("evaluate_rewards", (*CLASSIC, *PAIRS, "--backend", "server", "--server_url", "http://127.0.0.1:9"), "Is the server running there?"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "arguments", "says"), MISTAKES)
def test_scripts_and_commands_say_the_same(script, arguments, says, files, base_folder, monkeypatch):
    arguments = [argument.format(files=files, base=base_folder) for argument in arguments]
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.syspath_prepend(EXAMPLES)
    found = ended(run_script, script, *arguments)
    check_sentence(found, says)
    [module] = re.findall(r"\brun\((.+)\)", (EXAMPLES / f"{script}.py").read_text())
    for name, (command_module, _) in cli.COMMANDS.items():
        if command_module == module.strip('"'):
            again = ended(cli.main, [name, *arguments])
            check_sentence(again, says)
            assert sentence_of(again) == sentence_of(found)


def sentence_of(found: tuple[int, str]) -> str:
    """The message, without the name of the program."""
    return found[1].splitlines()[-1].split(": ", 1)[1]


def test_mistakes_cover_every_script():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"quickstart_stages"}
    # Their imports, Ray and GRPO, take longer than all rows of the table
    assert scripts - {script for script, *_ in MISTAKES} == {"build_critiques_with_ray", "grpo_with_cloud"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["score", "--model", "{base}", "--prompt", "x"], "Set `prompt` and `response`, or `input`."),
        (["score", "--model", "{base}", "--prompt", "x", "--response", "y"], "not a CLoud model"),
        (["score", "--model", "{base}", "--input", "{files}/absent.jsonl"], "absent.jsonl: No such file"),
        (["score", "--model", "{base}", "--input", "{files}/responses.jsonl"], "responses.jsonl: Row 1 has no `response`."),
        (["score", "--model", "{base}", "--input", "{files}/latin.jsonl"], "is not UTF-8"),
        (["score", "--prompt", "--verbose or not?", "--response", "x"], "The following arguments are required: --model"),
        (["train-cloud", "--config={files}/absent.yaml"], "absent.yaml: No such file or directory."),
        (["convert", "{files}/absent"], "The following arguments are required: destination."),
        (["convert", "{files}/absent", "{files}/new"], "There is no folder"),
        (["convert", "{base}", "{files}"], "is not an empty folder"),
        (["plan", "--config", "{files}/absent.yaml"], "absent.yaml: No such file"),
        (["plan", "--config", "{files}/bad.yaml"], "bad.yaml"),
        (["plan", "--model", "{files}/absent"], "There is no folder"),
        (["plan", "--model", "{base}", "--gpus", "0"], "`gpus` is 0; it must be at least 1"),
        (["serve", "{base}", "--vllm_options", "{{"], "not JSON"),
        (["serve", "{base}", "--backend", "vllm", "--vllm_options", '{{"revision": "v1"}}'], "vLLM's option `revision` is 'v1'"),
        (["serve", "{base}"], "not a CLoud model"),
        (["serve", "{base}", "--api_key", ""], "The key (`--api_key` or CLOUD_API_KEY) is empty"),
        (["serve", "{base}", "--api_key", "sésame"], "The key (`--api_key` or CLOUD_API_KEY) contains characters"),
        (["serve", "{base}", "--dtype", "float8_e4m3fn"], "`dtype` is 'float8_e4m3fn'"),
        (["demo", "--model"], "expected one argument"),
        (["demo", "--model", "{files}/absent"], "there is no such folder"),
    ],
)  # fmt: skip
def test_mistakes_of_other_commands(arguments, says, files, base_folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = [argument.format(files=files, base=base_folder) for argument in arguments]
    found = ended(cli.main, arguments)
    check_sentence(found, says)
    assert found[1].splitlines()[-1].startswith(f"cloud-hf {arguments[0]}: ")


def test_a_port_in_use_is_named_before_the_model_loads(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        check_sentence(ended(cli.main, ["serve", "absent-model", "--port", str(port)]), f"port {port}")
