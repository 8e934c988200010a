"""Convert a reward model between the authors' published layout and the native one, one weight shard at a time."""

import json
import logging
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCard, get_safetensors_metadata, snapshot_download
from huggingface_hub.errors import NotASafetensorsRepoError
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

from .cards import inherit, kind_of, model_card, shown_name
from .cli import run
from .configuration_cloud import CLoudConfig, check_name, spell_critique_prompt
from .critique_format import CritiqueFormat
from .markdown import in_code
from .modeling_cloud import CLoudForRewardModeling, unused_token_id
from .published import (
    FEEDBACK_METHODS,
    find_shards,
    find_weights,
    is_published,
    native_key,
    published_key,
    read_shapes,
)
from .safe_paths import check_links


logger = logging.getLogger(__name__)

# Copied unchanged: if this version of transformers saved them again, older versions could not read them
_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.*",
)  # fmt: skip
# Keys of a language model's config that change no reward
_UNCOMPARED_KEYS = {
    "_name_or_path", "architectures", "attention_dropout", "bos_token_id", "dtype", "initializer_range",
    "output_router_logits", "pad_token_id", "router_aux_loss_coef", "transformers_version", "use_cache",
}  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """A weight file: its path (`None` if it is not downloaded), its name in the new folder, its tensors' shapes, and its size."""

    path: Path | None
    new_name: str
    shapes: dict[str, tuple[int, ...]]
    num_bytes: int

    def tensors(self) -> dict[str, torch.Tensor]:
        """Load the weights, memory-mapped if possible."""
        assert self.path is not None, "planned without download"
        if self.path.suffix == ".safetensors":
            with safe_open(self.path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return _load_pickle(self.path)


@dataclass(frozen=True)
class Conversion:
    """A checked conversion plan; `to` is `"native"` or `"published"`."""

    source: str
    to: str
    config: CLoudConfig
    tokenizer_files: list[Path]
    shards: list[Shard]

    def __str__(self) -> str:
        text_config = self.config.text_config
        lines = [
            f"{self.source} -> {self.to} layout: {kind_of(self.config.critique).title}, {text_config.model_type} of "
            f"{text_config.num_hidden_layers} layers, hidden size {text_config.hidden_size}, vocabulary "
            f"{text_config.vocab_size}; {sum(len(shard.shapes) for shard in self.shards)} tensors, "
            f"{self.num_bytes / 1e9:.2f} GB"
        ]
        lines += [
            f"  {shard.new_name}: {len(shard.shapes)} tensors, {shard.num_bytes / 1e9:.2f} GB" for shard in self.shards
        ]
        return "\n".join(lines)

    @property
    def num_bytes(self) -> int:
        """Size of all weights in bytes."""
        return sum(shard.num_bytes for shard in self.shards)


def plan(
    source: str,
    *,
    base_model_name_or_path: str | None = None,
    text_config: str | None = None,
    tokenizer: str | None = None,
    revision: str | None = None,
    from_pickle: bool = False,
    download: bool = True,
) -> Conversion:
    """
    Read and check everything that a conversion needs, except the weights themselves.

    Args:
        source (`str`):
            Hub id or folder of a published checkpoint, or of a native checkpoint that was converted from one.
        base_model_name_or_path (`str`, *optional*):
            Language model whose architecture to use, instead of the one that the checkpoint names. In a conversion to the
            published layout, the name of the base model to write into the config.
        text_config (`str`, *optional*):
            File or folder with the config of that language model.
        tokenizer (`str`, *optional*):
            Hub id or folder of the tokenizer, if the checkpoint has none.
        revision (`str`, *optional*):
            Branch, tag or commit of `source` on the Hub.
        from_pickle (`bool`, *optional*, defaults to `False`):
            Whether to load pickled weights (tensors only).
        download (`bool`, *optional*, defaults to `True`):
            Whether to download weights from the Hub. With `False`, only their headers are read.

    Raises:
        `FileNotFoundError`: If `source` is neither a folder nor a possible Hub id.
        `ValueError`: If the checkpoint is incomplete or does not match its architecture; the message says what to do.
    """
    check_name(source)
    published = is_published(CLoudConfig.get_config_dict(source, revision=revision)[0])
    options = {}
    if base_model_name_or_path is not None:
        options["base_model_name_or_path"] = base_model_name_or_path
    if text_config is not None:
        options["text_config"] = AutoConfig.from_pretrained(text_config)
    config = CLoudConfig.from_pretrained(source, revision=revision, **options)
    if not published:
        _check_publishable(source, config)
    loaded_tokenizer, tokenizer_files = _find_tokenizer(tokenizer or source, None if tokenizer else revision, config)
    shards = _find_shards(source, revision, from_pickle, download)
    if len({shard.new_name for shard in shards}) < len(shards):
        raise ValueError(f"{source} has shards with the same name in several folders; rename them.")
    shapes = {key: shape for shard in shards for key, shape in shard.shapes.items()}
    CLoudForRewardModeling.check_checkpoint(source, config, shapes)
    if published:
        config.critique_end_token_id = CritiqueFormat.from_config(config, loaded_tokenizer).end_token_id
        config.reward_token_id = unused_token_id(loaded_tokenizer, config.text_config.vocab_size)
    return Conversion(source, "native" if published else "published", config, tokenizer_files, shards)


def write(conversion: Conversion, destination: str | Path):
    """
    Carry out a conversion. The config is written last, so a folder without a config contains an unfinished conversion.

    Raises:
        `ValueError`: If the folder is not empty or the disk has too little space. Nothing is written in that case.
    """
    folder = Path(destination)
    check_empty(folder)
    check_room(folder, conversion.num_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    rename = native_key if conversion.to == "native" else published_key
    weight_map: dict[str, str] = {}
    total_size = 0
    for shard in tqdm(conversion.shards, desc="Converting", unit="shard", dynamic_ncols=True):
        tensors = {rename(key): tensor for key, tensor in shard.tensors().items()}
        save_file(tensors, folder / shard.new_name, metadata={"format": "pt"})
        total_size += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(tensors, shard.new_name)
    if [shard.new_name for shard in conversion.shards] != [SAFE_WEIGHTS_NAME]:
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
    for path in conversion.tokenizer_files:
        shutil.copyfile(path, folder / path.name)
    _card(conversion, folder).save(folder / "README.md")
    if conversion.to == "native":
        CLoudForRewardModeling.without_weights(conversion.config).save_without_weights(folder)
    else:
        (folder / "config.json").write_text(json.dumps(_published_config(conversion.config), indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------- reading


def _find_shards(source: str, revision: str | None, from_pickle: bool, download: bool) -> list[Shard]:
    if not download and not Path(source).is_dir():
        try:
            metadata = get_safetensors_metadata(source, revision=revision)
        except NotASafetensorsRepoError as error:
            raise ValueError(
                f"{source} has no safetensors on the Hub. To read pickled weights, pass --from_pickle and omit --dry_run."
            ) from error
        return [
            Shard(
                None,
                name,
                {key: tuple(tensor.shape) for key, tensor in file.tensors.items()},
                sum(tensor.data_offsets[1] - tensor.data_offsets[0] for tensor in file.tensors.values()),
            )
            for name, file in metadata.files_metadata.items()
        ]
    if not from_pickle:
        # Reading headers is cheap: each is a few kilobytes
        return [
            Shard(path, path.name, read_shapes([path]), path.stat().st_size)
            for path in find_weights(source, revision=revision)
        ]
    shards = []
    for path in _find_pickles(source, revision):
        tensors = _load_pickle(path)
        new_name = path.name.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        shards.append(Shard(path, new_name, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, num_bytes))
    return shards


def _find_pickles(source: str, revision: str | None) -> Iterator[Path]:
    options = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    index = cached_file(source, WEIGHTS_INDEX_NAME, **options)
    if index is not None:
        yield from find_shards(source, index, revision=revision)
        return
    single = cached_file(source, WEIGHTS_NAME, **options)
    if single is None:
        raise ValueError(f"{source} has no pickled weights; omit `--from_pickle`.")
    check_links(Path(single).parent, [single])
    yield Path(single)


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Load tensors; `weights_only` makes torch refuse a pickle that would run code. Tied weights are returned once."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is damaged or contains more than tensors, so it was not loaded.") from error
    names: dict[int, str] = {}
    for key, tensor in tensors.items():
        names.setdefault(tensor.data_ptr(), key)
    return {key: tensors[key].contiguous() for key in names.values()}


def _find_tokenizer(
    name: str, revision: str | None, config: CLoudConfig
) -> tuple[PreTrainedTokenizerBase, list[Path]]:
    """Return a model's tokenizer and its files. Raises `ValueError` unless it fits the vocabulary of `config`."""
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_TOKENIZER_FILES)))
    files = [path for pattern in _TOKENIZER_FILES for path in sorted(folder.glob(pattern))]
    check_links(folder, files)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} has no tokenizer that can be loaded ({error}). Pass one with `--tokenizer`."
        ) from error
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens, but the model's vocabulary has only "
            f"{config.text_config.vocab_size}, so it belongs to another model. Pass the right one with `--tokenizer`."
        )
    return tokenizer, files


# --------------------------------------------------------------------------------------------------------- checking


def _check_publishable(source: str, config: CLoudConfig):
    """Raise `ValueError` if the published layout cannot describe the model. Tools that load this layout score in the reference format."""
    if config.format != "reference":
        raise ValueError(
            f"{source} has `format` {config.format!r}, but only models with `format` 'reference' can be converted to the "
            "published layout: when loaded from it, the model would be scored in a format that it was not trained on."
        )
    told = {
        "critique_prompt": spell_critique_prompt(None, "reference"), "chat_template_kwargs": None, "reward_mean": 0.0, "reward_std": 1.0,
        "reward_head": "mlp",
    }  # fmt: skip
    for key, default in told.items():
        if getattr(config, key) != default:
            raise ValueError(
                f"{source}: the published layout cannot store `{key}`, which is {getattr(config, key)!r}."
            )
    if not config.base_model_name_or_path:
        raise ValueError("A config in the published layout must name a base model: pass `--base_model_name_or_path`.")
    _check_base(source, config, config.base_model_name_or_path)


def _check_base(source: str, config: CLoudConfig, base: str):
    """Raise `ValueError` if the base's config, which replaces `text_config` in the published layout, would change the model."""
    try:
        base_config = AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning(
            "The config of the base %s cannot be read (%s). Check that it is the same as that of %s; otherwise, rewards change.",
            base, reason, source,
        )  # fmt: skip
        return
    loaded = CLoudConfig.from_dict(_published_config(config), text_config=base_config).text_config.to_dict()
    own = config.text_config.to_dict()
    for key in sorted((own.keys() | loaded.keys()) - _UNCOMPARED_KEYS):
        if own.get(key) != loaded.get(key):
            raise ValueError(
                f"{source}: the published layout takes the config from the base {base}, whose `{key}` is {loaded.get(key)!r:.200}, but the "
                f"model's is {own.get(key)!r:.200}, so its rewards would change. Pass a base with the model's config as "
                "`--base_model_name_or_path`."
            )


def check_empty(folder: Path):
    """Raise `ValueError` unless the folder is empty or does not exist yet."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        is_partial = any(folder.glob("*.safetensors")) and not (folder / "config.json").exists()
        what = "contains an unfinished conversion; remove it" if is_partial else "is not an empty folder; empty it"
        raise ValueError(f"{folder} {what}, or name another.")


def check_room(folder: Path, num_bytes: int):
    """Raise `ValueError` if the folder's disk has too little space for the weights."""
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if (free := shutil.disk_usage(parent).free) < num_bytes:
        raise ValueError(f"{folder} needs {num_bytes / 1e9:.3f} GB, but its disk has {free / 1e9:.3f} GB left.")


# ---------------------------------------------------------------------------------------------------------- writing


def _published_config(config: CLoudConfig) -> dict:
    methods = {critique: method for method, critique in FEEDBACK_METHODS.items()}
    return {
        "architectures": ["CLoudRewardModel"],
        "base_model_name_or_path": config.base_model_name_or_path,
        "feedback_method": methods[config.critique],
        **({} if config.dtype is None else {"torch_dtype": str(config.dtype).removeprefix("torch.")}),
    }


def _card(conversion: Conversion, folder: Path) -> ModelCard:
    config, source = conversion.config, conversion.source
    base = config.base_model_name_or_path
    about = (
        f"These are the unchanged weights of {in_code(shown_name(source) or '')} in "
        f"{'a layout that loads with `AutoModel`' if conversion.to == 'native' else 'the layout of the published checkpoints'}. "
        f"Its base is {in_code(shown_name(base) or '') or 'not named'}; both licences apply. It is scored in the reference "
        "implementation's format (`format` is `reference`), in which it was trained."
    )
    metadata = inherit(base) | inherit(source)
    return model_card(folder.name, kind_of(config.critique), about, metadata, package=conversion.to == "published")


if __name__ == "__main__":
    run("cloud_hf.commands.convert")
