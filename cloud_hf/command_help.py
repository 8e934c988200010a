"""
The page that `--help` prints, built from a command's source code.

The command is not imported, because it imports torch, which takes seconds. The page shows only the most common of the hundreds of
options that training commands inherit from transformers and TRL; `--help_all` lists them all.
"""

import ast
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .argument_help import parameter_texts


_PACKAGE = Path(__file__).parent
_COLUMN = 34  # where descriptions start
_OTHERS = {
    "--config FILE": "YAML file with defaults for the options.",
    "--help_all": "List every option, with complete descriptions.",
    "--debug": "Show the traceback of an error.",
}
# The most commonly set options among those that training commands inherit from transformers and TRL
_MODEL = {
    "--model_name_or_path str": "Hub id or folder to start from (required).",
    "--use_peft": "Train a LoRA adapter; see also --lora_r and --lora_target_modules.",
}
_TRAINING = {
    "--output_dir str": "Folder for the model, its card and checkpoints.",
    "--learning_rate float": "Peak learning rate of AdamW.",
    "--num_train_epochs float": "Number of passes over the data.",
    "--max_steps int": "Number of optimizer steps, instead of epochs.",
    "--per_device_train_batch_size int": "Rows per device in one forward pass.",
    "--gradient_accumulation_steps int": "Forward passes per optimizer step.",
    "--max_length int": "Maximum sequence length, in tokens.",
    "--gradient_checkpointing bool": "Recompute activations to save memory.",
    "--bf16 bool": "Compute in bfloat16; False on a CPU.",
    "--use_cpu": "Train on the CPU.",
    "--deepspeed FILE": "DeepSpeed configuration, such as ds_configs/zero2.json.",
    "--eval_strategy str": "When to evaluate: no, steps or epoch.",
    "--save_steps int": "Steps between checkpoints.",
    "--resume_from_checkpoint str": "true for the latest checkpoint, or a checkpoint's folder.",
    "--report_to str": "Experiment trackers, such as wandb or trackio, or none.",
    "--seed int": "Seed for row order, dropout and new weights.",
}


def help_page(module: str, prog: str) -> str | None:
    """
    Return what `--help` prints for a command that is called as `prog`, at most 80 lines of 120 columns. Return `None` if the command
    is neither a module of this package nor the running script, or if it parses the command line itself and so has no `ARGUMENTS` (the
    dataclasses of its options).
    """
    path = _source_of(module)
    tree = ast.parse(path.read_text(encoding="utf-8")) if path else None
    names = _argument_classes(tree, path) if tree and path else None
    if tree is None or names is None:
        return None
    own = _classes(tree)
    groups: dict[str, dict[str, str]] = {}
    seen = set(_strings(tree, "FIXED_OPTIONS"))  # options that the user cannot set
    for found in (found for name in names for found in _lineage(name, own)):
        new = {flag: text for flag, text in _options(found).items() if flag.split()[0] not in seen}
        seen |= {flag.split()[0] for flag in new}
        if new:
            groups.setdefault(_heading(found), {}).update(new)
    inherited = _MODEL if any(name.endswith("ModelConfig") for name in names) else {}
    if any(name.endswith("Config") for name in names):
        inherited = inherited | _TRAINING
    for heading, options in {"Common options of training": inherited, "Other options": _OTHERS}.items():
        groups[heading] = {flag: text for flag, text in options.items() if flag.split()[0] not in seen}
    # A backslash at the end of a docstring line joins that line to the next one; separate the two again
    description = re.sub(r"(?<=\S) {3,}", " \\\n    ", ast.get_docstring(tree) or "")
    parts = [f"usage: {prog} [--option value ...]", description]
    parts += [
        f"{heading}:\n" + "\n".join(_line(*option) for option in options.items())
        for heading, options in groups.items()
        if options
    ]
    return "\n\n".join(parts)


def _source_of(module: str) -> Path | None:
    """Return the source file of the running script or of a module in this package, or `None` for other modules."""
    package, *names = module.split(".")
    if module == "__main__":
        return Path(sys.argv[0])
    return _PACKAGE.joinpath(*names).with_suffix(".py") if package == _PACKAGE.name else None


def _argument_classes(tree: ast.Module, path: Path) -> list[str] | None:
    """Return the names in `ARGUMENTS`, which a module may also import from a sibling module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ARGUMENTS":
            return [ast.unparse(element) for element in node.value.elts]  # type: ignore[attr-defined]
        if isinstance(node, ast.ImportFrom) and any(alias.name == "ARGUMENTS" for alias in node.names):
            sibling = path.parent / f"{node.module}.py"
            return _argument_classes(ast.parse(sibling.read_text(encoding="utf-8")), sibling)
    return None


def _strings(tree: ast.Module, name: str) -> tuple[str, ...]:
    """Return the tuple of strings that a module assigns to a name."""
    values = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name]
    return ast.literal_eval(values[0]) if values else ()


def _classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


@cache
def _in_package(name: str) -> ast.ClassDef | None:
    for path in _PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if re.search(rf"^class {name}\b", text, re.MULTILINE):
            return _classes(ast.parse(text))[name]
    return None


def _lineage(name: str, own: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    """Yield a class and those of its bases that belong to this package."""
    found = own.get(name) or _in_package(name)
    if found is not None:
        yield found
        for base in found.bases:
            yield from _lineage(ast.unparse(base), own)


def _heading(found: ast.ClassDef) -> str:
    """Return the heading of a class's options: the first sentence of its docstring, or "Training" for training configs."""
    if found.name.endswith("Config"):
        return "Training"
    return re.split(r"\.\s|\.$", ast.get_docstring(found) or "")[0]


def _options(found: ast.ClassDef) -> dict[str, str]:
    """Return the options that a class defines: the flag with its type, and the first sentence of its description."""
    texts = parameter_texts(ast.get_docstring(found) or "")
    options = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and (name := ast.unparse(node.target)) in texts:
            sentence = re.split(r"(?<=[.;])\s", texts[name])[0].rstrip(".;")
            text = f"{sentence}{_default(node.value)}.".replace('`"', "").replace('"`', "").replace("`", "")
            options[f"--{name} {_type(node.annotation)}"] = text
    return options


def _type(annotation: ast.expr) -> str:
    return re.sub(r"list\[(\w+)\]", r"\1 ...", ast.unparse(annotation).replace(" | None", ""))


def _default(value: ast.expr | None) -> str:
    """Describe a default. Return `""` for empty defaults, and for `None`, whose meaning the option's description explains."""
    if value is None:
        return " (required)"
    if isinstance(value, ast.Call):  # field(default=…) or field(default_factory=lambda: …)
        given = {word.arg: word.value for word in value.keywords}
        factory = given.get("default_factory")
        value = given.get("default", factory.body if isinstance(factory, ast.Lambda) else ast.Constant(None))
    text = ast.unparse(value).strip("'")
    return "" if text in ("None", "", "[]", "()") else f" (default: {text})"


def _line(flag: str, text: str) -> str:
    width = min(shutil.get_terminal_size((120, 24)).columns, 120)
    start = f"  {flag}".ljust(_COLUMN - 2) + "  "
    return textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * _COLUMN)
