"""
Members of upstream libraries that are private or come from a submodule: that they exist, with the parameters we rely on.

After an upgrade, this list says what to look at. A new use that is not listed fails `test_every_use_is_listed`.
"""

import importlib
import inspect
from typing import Any

import pytest
from upstream_members import private_names, submodule_imports


# Path: (why we use it, parameters we pass or override)
CONTRACTS: dict[str, tuple[str, tuple[str, ...]]] = {
    # ---- accelerate
    "accelerate.utils.DistributedType": ("tells FSDP from DeepSpeed and DDP", ()),
    "accelerate.utils.broadcast_object_list": ("all ranks share the id of a run", ("object_list",)),
    "accelerate.utils.gather_object": ("gathers critiques of all ranks for the log", ("object",)),
    "accelerate.utils.is_peft_model": ("tells adapters from full models under any wrapper", ("model",)),
    "accelerate.utils.recursively_apply": ("gathers whatever the user's function makes of rewards", ("func", "data")),
    # ---- datasets
    "datasets.arrow_writer.ArrowWriter": ("streams a builder's rows to disk without holding them", ("features", "path")),
    "datasets.exceptions.DatasetGenerationError": ("raised for unreadable files; its cause has the reason", ()),
    # ---- peft
    "peft.tuners.tuners_utils.BaseTunerLayer": ("tells adapted layers", ()),
    "peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING": ("default LoRA targets, for the planner", ()),
    "peft.utils.AuxiliaryTrainingWrapper": ("tells layers of which an adapter trains a copy", ()),
    "peft.utils.SAFETENSORS_WEIGHTS_NAME": ("file name", ()),
    "peft.utils.save_and_load.load_peft_weights": ("reads an adapter's weights to check them", ("model_id", "device")),
    # ---- torch
    "torch._subclasses.fake_tensor.FakeTensorMode": ("plans memory without allocating any", ("allow_non_fake_inputs",)),
    "torch.autograd.function.once_differentiable": ("the chunked loss has no second derivative", ()),
    "torch.distributed.fsdp.FSDPModule": ("recognises models that FSDP2 shards", ()),
    "torch.distributed.fsdp.MixedPrecisionPolicy": ("keeps the reward head in fp32 under FSDP2", ("param_dtype",)),
    "torch.distributed.fsdp.fully_shard": ("shards the reward head by itself", ("module", "mp_policy")),
    "torch.distributed.fsdp.fully_sharded_data_parallel.StateDictType": ("refuses sharded state dicts by name", ()),
    "torch.distributed.tensor.Shard": ("places the reward head's single row", ()),
    "torch.nn.functional": ("documented under torch.nn", ()),
    "torch.nn.attention.flex_attention.BlockMask": ("tells FlexAttention what each block of a flattened batch sees", ()),
    "torch.nn.attention.flex_attention.flex_attention": (
        "attends over shared prompts on GPUs", ("score_mod", "block_mask", "scale", "enable_gqa"),
    ),
    "torch.nn.attention.varlen.varlen_attn": (
        "attends over flattened batches on GPUs", ("scale", "window_size", "enable_gqa"),
    ),
    "torch.utils._python_dispatch.TorchDispatchMode": ("counts the allocations of a planned step", ()),
    "torch.utils._pytree.tree_iter": ("finds the tensors in an operator's results", ("tree",)),
    "torch.utils.checkpoint.checkpoint": ("recomputes pieces of the critique loss", ("function", "use_reentrant")),
    "torch.utils.data.DataLoader": ("documented under torch.utils.data", ()),
    "torch.utils.data.Sampler": ("documented under torch.utils.data", ()),
    "torch.nn.Module._buffers": ("the planner replaces weights by fake ones in place", ()),
    "torch.nn.Module._parameters": ("the planner replaces weights by fake ones in place", ()),
    "torch.UntypedStorage._cdata": ("identifies storages that tensors share", ()),
    # ---- transformers
    "transformers.cache_utils.LinearAttentionCacheLayerMixin": ("recurrent layers cannot be cropped or repeated", ()),
    "transformers.configuration_utils.PreTrainedConfig": ("remote code imports it by this path", ()),
    "transformers.core_model_loading.revert_weight_conversion": (
        "writes weights under the names of the hub", ("model", "state_dict"),
    ),
    "transformers.dynamic_module_utils.custom_object_save": ("copies the remote code next to a model", ("obj", "folder")),
    "transformers.integrations.deepspeed.is_deepspeed_zero3_enabled": ("loading differs where weights are sharded", ()),
    "transformers.integrations.sdpa_attention.sdpa_attention_forward": (
        "the attention that packed batches call per segment", ("module", "query", "key", "value", "attention_mask"),
    ),
    "transformers.masking_utils.sdpa_mask": ("registers packed attention with the mask of SDPA", ()),
    "transformers.modeling_utils.set_zero3_state": ("builds the head under ZeRO-3 as the trunk is built", ()),
    "transformers.modeling_utils.local_torch_dtype": ("builds the model of a simulated step in its data type", ()),
    "transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": ("names the language models", ()),
    "transformers.models.auto.modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": (
        "names the sequence classifiers", ()
    ),
    "transformers.pipelines.PIPELINE_REGISTRY": ("registers the pipeline", ()),
    "transformers.quantizers.base.get_keys_to_not_convert": ("layers that stay unquantised, for the planner", ("model",)),
    "torch.distributed.tensor.DTensor": ("tells sharded weights, of which each process checks its part", ()),
    "transformers.trainer_utils.SchedulerType": ("names the scheduler on a model card", ()),
    "transformers.trainer_utils.PREFIX_CHECKPOINT_DIR": ("names checkpoint folders", ()),
    "transformers.trainer_utils.rotate_checkpoints": (
        "removes old checkpoints after the record is written", ("output_dir", "save_total_limit"),
    ),
    "transformers.trainer_utils.sort_checkpoints": ("orders checkpoint folders", ("output_dir",)),
    "transformers.utils.SAFE_WEIGHTS_INDEX_NAME": ("file name", ()),
    "transformers.utils.SAFE_WEIGHTS_NAME": ("file name", ()),
    "transformers.utils.WEIGHTS_INDEX_NAME": ("file name", ()),
    "transformers.utils.WEIGHTS_NAME": ("file name", ()),
    "transformers.utils.chat_template_utils.Chat": ("what `pipeline` makes of chat messages", ()),
    "transformers.utils.generic.ModelOutput": ("base of CLoudOutput", ()),
    "transformers.utils.generic.is_flash_attention_requested": ("padding-free batches depend on the kernel", ("config",)),
    "transformers.utils.hub.cached_file": ("finds a file of a folder or the Hub", ("path_or_repo_id", "filename")),
    "transformers.utils.hub.extract_commit_hash": ("names the revision a model was read from", ("resolved_file",)),
    "transformers.utils.hub.get_checkpoint_shard_files": ("lists a checkpoint's shards", ("index_filename",)),
    "transformers.utils.is_flash_attn_2_available": ("FlashAttention is refused where its package is absent", ()),
    "transformers.utils.is_flash_attn_3_available": ("FlashAttention is refused where its package is absent", ()),
    "transformers.utils.is_kernels_available": ("transformers can download FlashAttention's kernels", ()),
    "transformers.utils.is_liger_kernel_available": ("Liger's kernels are refused where absent", ()),
    "transformers.utils.is_torch_bf16_gpu_available": ("bf16 is refused where the GPU lacks it", ()),
    "transformers.GenerationConfig._get_default_generation_params": ("keys that are not a model's own choice", ()),
    "transformers.PreTrainedModel._can_set_attn_implementation": ("packed attention must be settable", ()),
    "transformers.PreTrainedModel._init_weights": ("initialises the reward head", ("module",)),
    "transformers.PreTrainedModel._is_stateful": ("stateful models cannot share a prefix", ()),
    "transformers.PreTrainedModel._keep_in_fp32_modules_strict": ("the reward head stays in fp32", ()),
    "transformers.PreTrainedModel._keys_to_ignore_on_load_missing": ("a base has no reward head", ()),
    "transformers.PreTrainedModel._supports_attention_backend": ("mirrors the language model", ()),
    "transformers.PreTrainedModel._supports_flash_attn": ("mirrors the language model", ()),
    "transformers.PreTrainedModel._supports_flex_attn": ("mirrors the language model", ()),
    "transformers.PreTrainedModel._supports_sdpa": ("mirrors the language model", ()),
    "transformers.generation.GenerationMixin._supports_default_dynamic_cache": ("other caches cannot be shared", ()),
    "transformers.Pipeline._forward": ("the pipeline scores in it", ("model_inputs",)),
    "transformers.Pipeline._load_tokenizer": ("the pipeline needs a tokenizer", ()),
    "transformers.Pipeline._sanitize_parameters": ("sorts the pipeline's options", ()),
    "transformers.Trainer._get_dataloader": ("workers draw no random numbers of training", ()),
    "transformers.Trainer._get_num_items_in_batch": ("counts pairs and labelled tokens of a step", ("batch_samples", "device")),
    "transformers.Trainer._get_output_dir": ("the folder of a checkpoint", ("trial",)),
    "transformers.Trainer._get_train_sampler": ("token budgets and shared prompts", ("train_dataset",)),
    "transformers.Trainer._remove_unused_columns": ("evaluation rows keep our columns", ("dataset",)),
    "transformers.Trainer._run_epoch": ("tells the sampler the epoch, also after resume", ()),
    "transformers.Trainer._save": ("saves the wrapper, not its shards", ("output_dir", "state_dict")),
    "transformers.Trainer._load_from_checkpoint": ("an adapter keeps its data type", ()),
    "transformers.Trainer._save_checkpoint": ("the record is written last", ("model", "trial")),
    "transformers.Trainer._finalize_training": ("seconds of earlier runs count", ()),
    # ---- trl
    "trl.RewardTrainer._name": ("name in cards", ()),
    "trl.RewardTrainer._tag_names": ("tags in cards", ()),
    "trl.RewardTrainer._prepare_dataset": (
        "encodes rows by the critique format", ("dataset", "processing_class", "args", "dataset_name"),
    ),
    "trl.RewardTrainer._set_signature_columns_if_needed": ("keeps labels and reward positions", ()),
    "trl.models.utils.prepare_deepspeed": ("shards the reference model of stage 4", ("model", "accelerator")),
    "trl.models.utils.unwrap_model_for_generation": (
        "gathers the weights that write critiques", ("model", "accelerator", "gradient_checkpointing_kwargs"),
    ),
    "trl.trainer.reward_trainer.DataCollatorForPreference": ("base of the collator", ()),
    "trl.trainer.utils.get_config_model_id": ("names the base in cards", ("config",)),
    "trl.trainer.utils.get_trackio_space_url": ("links the run in cards", ()),
    "trl.trainer.utils.global_then_local_main_first": ("encodes once, then on each node", ()),
    "trl.trainer.utils.pad": ("pads batches", ("tensors", "padding_value")),
    # ---- vllm
    "vllm.config.ModelConfig": ("the plugin reads the model's config", ()),
    "vllm.config.VllmConfig": ("the processors read the context length", ()),
    "vllm.distributed.get_pp_group": ("the head lives on the last pipeline stage", ()),
    "vllm.exceptions.VLLMValidationError": ("its message reaches the client with status 400", ()),
    "vllm.inputs.TokensPrompt": ("what the renderer makes of messages", ()),
    "vllm.inputs.TokensInput": ("prompts are token ids", ()),
    "vllm.inputs.tokens_input": ("prompts are token ids", ("prompt_token_ids",)),
    "vllm.model_executor.layers.pooler.DispatchPooler": ("a classic model's pooler", ("poolers_by_task",)),
    "vllm.model_executor.layers.pooler.activations.PoolerIdentity": ("the reward without a sigmoid", ()),
    "vllm.model_executor.layers.pooler.seqwise.LastPool": ("the reward is read at the last token", ()),
    "vllm.model_executor.layers.pooler.seqwise.pooler_for_classify": (
        "a classic model's pooler", ("pooler_config", "pooling", "classifier", "act_fn"),
    ),
    "vllm.model_executor.layers.vocab_parallel_embedding.ParallelLMHead": ("on a CPU, it packs its weights", ()),
    "vllm.model_executor.layers.vocab_parallel_embedding.VocabParallelEmbedding": (
        "vocabularies without a spare id get a row", (),
    ),
    "vllm.model_executor.models.config.MODELS_CONFIG_MAP": ("checks the engine's options at start", ()),
    "vllm.model_executor.models.config.VerifyAndUpdateConfig": ("checks the engine's options at start", ()),
    "vllm.model_executor.models.interfaces.SupportsLoRA": ("interface of a model", ()),
    "vllm.model_executor.models.interfaces.SupportsPP": ("interface of a model", ()),
    "vllm.model_executor.models.utils.AutoWeightsLoader": ("loads the weights", ("module",)),
    "vllm.model_executor.models.utils.PPMissingLayer": ("stands for layers of other stages", ()),
    "vllm.model_executor.models.utils.init_vllm_registered_model": (
        "builds the language model inside ours", ("vllm_config", "hf_config", "prefix"),
    ),
    "vllm.model_executor.models.utils.maybe_prefix": ("names of weights", ("prefix", "name")),
    "vllm.platforms.current_platform": ("the CPU wheel has its own limits", ()),
    "vllm.sampling_params.RequestOutputKind": ("streams deltas", ()),
    "vllm.sampling_params.SamplingParams": ("documented under vllm", ("logprobs", "stop_token_ids")),
    "vllm.renderers.hf.HfRenderer": ("renders chats and checks prompts; ours replaces its templates", ("config", "tokenizer")),
    "vllm.renderers.params.ChatParams": ("options of a chat that change its reward", ("chat_template", "chat_template_kwargs")),
    "vllm.renderers.params.TokenizeParams": (
        "options of a prompt that lose its reward", ("max_output_tokens", "truncate_prompt_tokens"),
    ),
    "vllm.renderers.registry.RENDERER_REGISTRY": ("registers our renderer", ()),
    "vllm.tokenizers.detokenizer_utils": ("the plugin replaces a function that all its callers look up there", ()),
    "vllm.tokenizers.detokenizer_utils._restore_leading_spaces": (
        "the plugin lets it take ids without a token", ("raw_token", "token_str", "marker"),
    ),
    "vllm.tokenizers.registry.TokenizerRegistry": ("its mode chooses the renderer", ()),
    "vllm.sequence.IntermediateTensors": ("passed between pipeline stages", ()),
    "vllm.v1.engine.async_llm.AsyncLLM": ("the engine behind the reward server", ()),
    "vllm.v1.engine.exceptions.EngineDeadError": ("raised when the engine's processes died", ()),
    "vllm.v1.sample.logits_processor.BatchUpdate": ("rows that join, leave and move", ()),
    "vllm.v1.sample.logits_processor.LogitsProcessor": ("closes critiques at the budget (V1 runner)", ()),
    "vllm.v1.sample.logits_processor.builtin.process_dict_updates": ("keeps requests by row", ("req_entries", "batch_update")),
    "vllm.v1.worker.gpu.buffer_utils.UvaBackedTensor": ("values per request, copied to the device", ("size", "dtype")),
    "vllm.v1.worker.gpu.sample.logits_processor.LogitsProcessor": ("closes critiques at the budget (V2 runner)", ()),
}  # fmt: skip

# Attributes that instances get while they run; they cannot be looked up on a class
INSTANCE_ATTRIBUTES = {
    "_keys_to_ignore_on_load_unexpected": "weights of a multimodal base that its language model leaves out",
    "_attn_implementation": "config attribute that names the attention of a model",
    "_content": "body of an httpx2 response, which it fills itself without a limit",
    "_signature_columns": "columns that the Trainer keeps",
    "_weight_conversions": "how a loaded checkpoint's weights were renamed",
    "_tr_loss": "running loss, saved and restored for exact resume",
    "_total_loss_scalar": "running loss, saved and restored for exact resume",
    "_globalstep_last_logged": "running loss, saved and restored for exact resume",
    "_initial_global_step": "speed of a resumed run",
    "_total_train_tokens": "tokens so far, for throughput and resume",
    "_metrics": "TRL's metrics since the last log line, for resume",
}


def locate(path: str) -> Any:
    """Import the longest prefix that is a module, and look up the rest; an attribute may be declared by annotation only."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            member: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if name in getattr(member, "__annotations__", {}) and name not in vars(member):
                return member.__annotations__[name]
            member = getattr(member, name)
        return member
    raise AssertionError(f"{path} cannot be imported")


@pytest.mark.parametrize("path", CONTRACTS)
def test_the_member_exists_with_the_parameters_we_rely_on(path):
    if path.startswith("vllm."):
        pytest.importorskip("vllm", reason="vLLM is not installed: its members are not checked.")
    member = locate(path)
    reason, parameters = CONTRACTS[path]
    assert reason
    if parameters:
        known = inspect.signature(member).parameters
        takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in known.values())
        missing = [name for name in parameters if name not in known]
        assert takes_any or not missing, f"{path} no longer takes {', '.join(missing)}; it takes {', '.join(known)}"


def test_every_use_is_listed():
    unlisted = submodule_imports() - set(CONTRACTS)
    assert not unlisted, f"Add these imports, with the reason, to CONTRACTS: {sorted(unlisted)}"
    listed = {path.rpartition(".")[2] for path in CONTRACTS} | set(INSTANCE_ATTRIBUTES)
    unlisted = private_names() - listed
    assert not unlisted, f"Add these private members, with the reason: {sorted(unlisted)}"


def test_nothing_is_listed_that_is_not_used():
    imported = submodule_imports()
    stale = [path for path in CONTRACTS if path not in imported and not path.rpartition(".")[2].startswith("_")]
    assert not stale, f"No longer used: {stale}"
