"""
The `cloud-hf` command, and the runner shared with the scripts in `examples/`.

Each command is a module. Its `main` accepts instances of the dataclasses in `ARGUMENTS`, which define the command's options;
without `ARGUMENTS`, it accepts the command line. The module is imported when its command is run.
"""

import argparse
import dataclasses
import importlib
import itertools
import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from traceback import walk_tb
from typing import Any

from .command_help import help_page
from .data.builders import BUILDERS
from .printable import printable


# To add a command, list its module here
COMMANDS = {
    "score": ("cloud_hf.commands.score", "Score responses, given as options or JSON lines."),
    "serve": ("cloud_hf.serving.server.command", "Serve a model over HTTP."),
    "demo": ("cloud_hf.commands.demo", "Open the demo in a browser."),
    "evaluate": ("cloud_hf.commands.evaluate_rewards", "Evaluate models on benchmarks, pairs and best-of-N."),
    "best-of-n": ("cloud_hf.commands.best_of_n", "Choose among candidates and measure how good the choices are."),
    "prepare": ("cloud_hf.commands.prepare", "Turn a public preference set into pairs."),
    **BUILDERS,
    "train-critique-sft": ("cloud_hf.commands.train_critique_sft", "Stage 1: fine-tune on oracle critiques."),
    "train-cloud": ("cloud_hf.commands.train_cloud", "Stage 3: train a CLoud model on its own critiques."),
    "train-outcome": ("cloud_hf.commands.train_outcome", "Stage 4: improve the critiques by their outcome."),
    "train-classic": ("cloud_hf.commands.train_classic", "Train a reward model without critiques."),
    "merge-shards": ("cloud_hf.data.shards", "Merge the outputs of sharded builders."),
    "merge-adapter": ("cloud_hf.commands.merge_adapter", "Merge a LoRA adapter into its base."),
    "convert": (
        "cloud_hf.commands.convert",
        "Convert published checkpoints and sequence classifiers to the native layout, and back.",
    ),
    "plan": ("cloud_hf.training.plan", "Estimate the memory of a training run."),
}

_EPILOG = """To list a command's options: cloud-hf COMMAND --help
Every command accepts --debug, which shows the traceback of an error."""

# `--debug` is also an option of transformers' TrainingArguments, with these values
_DEBUG_VALUES = ("underflow_overflow", "tpu_metrics_debug")
# A `ValueError` raised in these packages is caused by an argument or an input
_CHECKED_INPUT = (
    "accelerate", "argparse", "cloud_hf", "codecs", "datasets", "huggingface_hub", "json", "peft", "transformers", "trl", "vllm",
)  # fmt: skip
# Leaves room for errors that list many rows or options
_LONGEST_SENTENCE = 4000


class UsageError(Exception):
    """The command line cannot be parsed."""


def _raising(parser: Any) -> Any:
    """Return a parser class that raises `UsageError`. argparse would print the usage, which is often pages long, and exit."""

    def parse_known_args(self: Any, args: Any = None, namespace: Any = None):
        try:
            return parser.parse_known_args(self, args, namespace)
        except UsageError as error:
            # argparse reports a required option whose name is misspelt as missing. A word that contains a space is a value
            if "arguments are required" in str(error):
                words = sys.argv[1:] if args is None else args
                for word in itertools.takewhile(lambda word: word != "--", words):
                    option = word.split("=")[0]
                    if option.startswith("--") and " " not in option and option not in self.format_help():
                        raise UsageError(_unknown(option)) from None
            raise

    def error(self, message: str):
        raise UsageError(f"{message[:1].upper()}{message[1:].rstrip('.')}.")

    return type(parser.__name__, (parser,), {"error": error, "parse_known_args": parse_known_args})


def _unknown(option: str) -> str:
    return f"Unknown option `{option.split('=')[0]}`. `--help_all` lists all options."


# For commands with positional arguments
ArgumentParser: type[argparse.ArgumentParser] = _raising(argparse.ArgumentParser)


def main(arguments: Sequence[str] | None = None):
    """Run `cloud-hf`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = next((argument for argument in arguments if argument != "--debug"), "--help")
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(metadata.version("cloud-hf"))
    elif name not in COMMANDS:
        _fail("cloud-hf", f"`{name}` is not a command; it must be one of {', '.join(COMMANDS)}.")
    else:
        arguments.remove(name)
        run(COMMANDS[name][0], arguments, f"cloud-hf {name}")


def overview() -> str:
    """Return the text of `cloud-hf --help`."""
    width = max(map(len, COMMANDS))
    commands = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        ["Critique-out-loud reward models.", "", "usage: cloud-hf COMMAND ...", "", *commands, "", _EPILOG]
    )


def run(module: str, arguments: Sequence[str] | None = None, prog: str | None = None):
    """
    Run a command, by default with this process's arguments and with the script's name as `prog`. If the user made a mistake, print
    one sentence to stderr and exit with status 2, unless `--debug` is given.
    """
    debug, arguments = _take_debug(sys.argv[1:] if arguments is None else arguments)
    # argparse reads the program's name from `sys.argv`
    sys.argv = [prog or sys.argv[0], *arguments]
    prog = prog or Path(sys.argv[0]).name
    if not debug:
        _quiet_libraries()
    # For unreadable files, `datasets` logs the same errors that it raises
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    try:
        if {"-h", "--help"} & set(arguments) and (page := help_page(module, prog)):
            print(page)
        else:
            _run(module, ["--help" if word == "--help_all" else word for word in arguments])
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        _fail(prog, str(interrupt) or "Interrupted.", status=130)
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        _fail(prog, end.code)
    except Exception as error:
        sentence = explain(error)
        if debug or sentence is None:
            raise
        _fail(prog, sentence)


def _run(module: str, arguments: list[str]):
    command: Any = importlib.import_module(module)
    if types := getattr(command, "ARGUMENTS", None):
        fixed = getattr(command, "FIXED_OPTIONS", ())
        command.main(*parse(types, [*arguments, *fixed], description=command.__doc__))
    else:
        command.main(arguments)


def _quiet_libraries():
    """Silence messages that libraries log at every start on a CPU, and redraw progress bars less often in log files."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")


def _take_debug(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Remove `--debug` from the arguments, and return whether it was given."""
    kept = [
        word
        for word, after in zip(arguments, [*arguments[1:], ""], strict=False)
        if word != "--debug" or after in _DEBUG_VALUES
    ]
    return len(kept) < len(arguments), kept


def _fail(prog: str, sentence: str, status: int = 2):
    sys.stdout.flush()
    print(f"{prog}: {printable(sentence, _LONGEST_SENTENCE)}", file=sys.stderr)
    raise SystemExit(status) from None


# --------------------------------------------------------------------------------------------------------- parsing


def parse(types: Sequence[type], arguments: Sequence[str], **options: Any) -> tuple:
    """
    Parse a command line into dataclasses, as [`~trl.TrlParser`] does; `--config FILE` reads defaults from a YAML file. `options` are
    passed to `argparse.ArgumentParser`.

    Raises:
        `UsageError`: If an option is unknown, missing or malformed.
        `ValueError`: If a dataclass rejects its values.
    """
    if any(field.name == "config" for cls in types for field in dataclasses.fields(cls)):
        # TrlParser would treat the value of this command's `--config` as its own YAML file
        from transformers import HfArgumentParser

        parser = _raising(HfArgumentParser)(types, **options)
        *parsed, unknown = parser.parse_args_into_dataclasses(list(arguments), return_remaining_strings=True)
    else:
        from trl import TrlParser

        class Parser(_raising(TrlParser)):
            def set_defaults_with_config(self, **keys):
                # Before the command line is parsed: a required option whose key is misspelt would be reported as missing
                if unknown := super().set_defaults_with_config(**keys):
                    raise UsageError(f"Unknown key `{unknown[0].removeprefix('--')}` in the `--config` file.")
                return unknown

        # TrlParser does not know `--config=FILE`
        arguments = [part for word in arguments for part in word.split("=", word.startswith("--config="))]
        if "--config" in arguments[-1:]:
            raise UsageError("`--config` needs the name of a YAML file.")
        *parsed, unknown = Parser(types, **options).parse_args_and_config(arguments, return_remaining_strings=True)
    if unknown:
        raise UsageError(_unknown(unknown[0]))
    return tuple(parsed)


# ---------------------------------------------------------------------------------------------------------- errors


def explain(error: BaseException) -> str | None:
    """
    Return one sentence that explains the user's mistake behind an error, or `None` if the traceback should be shown.

    These errors count as a user's mistake: `OSError`, errors defined by this package or by YAML, `ValueError` from code that
    checks input, and the absence of a package that an extra installs.
    """
    if isinstance(error, ImportError):
        return _explain_import(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, UnicodeDecodeError):
        return f"A file is not UTF-8 ({error}). Save it as UTF-8."
    package = type(error).__module__.split(".")[0]
    passed = _passed_through(error)
    if "vllm" in passed and (sentence := _explain_engine(error, package)):
        return sentence
    is_checked = isinstance(error, ValueError) and passed[-1] in _CHECKED_INPUT
    if package == "torch" and type(error).__name__ == "OutOfMemoryError":
        return _explain_memory(str(error))
    if package == "safetensors":
        return f"A weight file is damaged ({error}). Copy or download the model again."
    if package in ("cloud_hf", "yaml") or isinstance(error, OSError) or is_checked:
        return str(error) or type(error).__name__
    return None


def _explain_memory(message: str) -> str:
    """Shorten torch's message to the amounts of memory requested and free, and name the options that help."""
    found = re.match(
        r"CUDA out of memory\. (Tried to allocate [\d.]+ \w+)\..*?of which ([\d.]+ \w+) is free", message, re.DOTALL
    )
    what = f": {found[1][0].lower()}{found[1][1:]}, {found[2]} was free" if found else ""
    return (
        f"The GPU has too little memory{what}. For training, lower `--per_device_train_batch_size` or `--token_budget`, or add "
        "`--gradient_checkpointing` (`python -m cloud_hf.training.plan` computes the largest batch that fits); for scoring, lower "
        "`--batch_size`."
    )


def _explain_engine(error: Any, package: str) -> str | None:
    """Explain why vLLM rejected its options (pydantic's error spans several lines), or why its engine did not start."""
    if package == "pydantic_core" and isinstance(error, ValueError):
        first = error.errors()[0]  # pyright: ignore[reportAttributeAccessIssue]  # pydantic's `ValidationError`
        field = ".".join(map(str, first["loc"]))
        given = f"`{field}` is {first['input']!r:.60}: " if field else ""
        return f"vLLM rejected the options. {given}{first['msg'].removeprefix('Value error, ').rstrip('.')}."
    if isinstance(error, RuntimeError) and str(error).startswith("Engine core initialization failed"):
        return (
            "vLLM's engine did not start; its log above shows the reason. If there is too little memory, lower `max_model_len` or "
            "`max_num_seqs` in `vllm_options`, or change `gpu_memory_utilization` there (by default, 0.92 of the GPU's memory must "
            "be free)."
        )
    return None


def _passed_through(error: BaseException) -> list[str]:
    """Return the package of each frame in an error's traceback; the last one raised the error."""
    return [frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in walk_tb(error.__traceback__)]


def _explain_import(error: ImportError) -> str | None:
    if error.name is None:  # raised by a library that lacks an optional dependency
        return str(error)
    package = error.name.split(".")[0]
    for requirement in metadata.requires("cloud-hf") or ():
        needed = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == [\"'](\w+)", requirement)
        if needed and extra and needed[0].replace("-", "_") == package and extra[1] != "dev":
            return f"The package `{package}` is not installed. Install it with: pip install 'cloud-hf[{extra[1]}]'."
    return None
