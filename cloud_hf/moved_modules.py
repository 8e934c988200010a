"""Import paths from version 0.1, which keep working, with a `DeprecationWarning`, until version 0.4."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


# Maps old module paths to new ones, both relative to `cloud_hf`
MOVED = {
    "conversation": "prompts",
    "data.builder_arguments": "data.builders.arguments",
    "data.building": "data.build_run",
    "data.critic_arguments": "data.builders.arguments",
    "data.critics": "data.critique_prompt",
    "data.decontamination": "data.duplicates",
    "data.deduplication": "data.duplicates",
    "data.judging": "data.judge",
    "data.loading": "data.rows",
    "data.merging": "data.shards",
    "data.model_identity": "model_identity",
    "data.ngrams": "data.duplicates",
    "data.official": "data.builders.published",
    "data.overlong": "data.fit_to_context",
    "data.pasted_tables": "spaces_ui",
    "data.prompts": "data.builders.prompts",
    "data.ray_critiques": "data.builders.ray",
    "data.schemas": "data.row_values",
    "data.self_critiques": "data.critiques",
    "evaluation.arguments": "evaluation.scoring_arguments",
    "evaluation.arena_hard_arguments": "evaluation.arena_hard.arguments",
    "evaluation.arena_hard_judge": "evaluation.arena_hard.judge",
    "evaluation.arena_hard_servers": "evaluation.arena_hard.judge",
    "evaluation.benchmark_plots": "evaluation.report.plots",
    "evaluation.benchmark_rows": "evaluation.rows",
    "evaluation.best_of_n": "evaluation.metrics.best_of_n",
    "evaluation.best_of_n_curve": "evaluation.metrics.best_of_n",
    "evaluation.best_of_n_plots": "evaluation.report.plots",
    "evaluation.best_of_n_report": "evaluation.candidates",
    "evaluation.best_of_n_results": "evaluation.candidates",
    "evaluation.calibration": "evaluation.metrics.calibration",
    "evaluation.critique_quality": "evaluation.metrics.critique_quality",
    "evaluation.critique_results": "evaluation.set_results",
    "evaluation.figures": "evaluation.stats",
    "evaluation.judge_bench": "evaluation.benchmarks.judge_bench",
    "evaluation.llm_bar": "evaluation.benchmarks.llm_bar",
    "evaluation.model_results": "evaluation.scored_sets",
    "evaluation.pairs": "evaluation.metrics.pairs",
    "evaluation.plots": "evaluation.report.plots",
    "evaluation.preference_pairs": "evaluation.benchmarks.preference_pairs",
    "evaluation.probes.answers": "evaluation.probes.content_free_answers",
    "evaluation.probes.batch": "evaluation.probes.batch_position",
    "evaluation.rejection": "evaluation.metrics.selective_accuracy",
    "evaluation.resampling": "evaluation.stats",
    "evaluation.result_files": "evaluation.report.files",
    "evaluation.reward_bench": "evaluation.benchmarks.reward_bench",
    "evaluation.reward_bench_2": "evaluation.benchmarks.reward_bench_2",
    "evaluation.rm_bench": "evaluation.benchmarks.rm_bench",
    "evaluation.robustness": "evaluation.analysis",
    "evaluation.robustness_plots": "evaluation.report.plots",
    "evaluation.robustness_report": "evaluation.report.tables",
    "evaluation.self_consistency": "evaluation.metrics.self_consistency",
    "evaluation.tables": "evaluation.formatting",
    "evaluation.uncertainty": "evaluation.analysis",
    "reference_format": "critique_format",
    "serving.contracts": "serving.server.contracts",
    "serving.engine": "serving.server.engine",
    "serving.gate": "serving.server.middleware",
    "serving.rendered_chats": "chat_parsing",
    "serving.settled_text": "serving.server.engine",
    "serving.space_manners": "spaces_ui",
    "serving.vllm_engine": "serving.vllm.engine",
    "serving.vllm_model": "serving.vllm.model",
    "serving.vllm_model_folder": "serving.vllm.requests",
    "serving.vllm_plugin": "serving.vllm.plugin",
    "serving.vllm_processor": "serving.vllm.logits_processor",
    "serving.vllm_processor_v2": "serving.vllm.logits_processor_v2",
    "serving.vllm_requests": "serving.vllm.requests",
    "serving.vllm_scorer": "serving.vllm.scorer",
    "training.adapters": "training.lora",
    "training.batching": "training.sampler",
    "training.checkpoints": "training.resume",
    "training.launch_checks": "training.resume",
    "training.model_card": "cards",
    "training.saving": "training.resume",
    "training.sft": "commands.train_critique_sft",
    "training.sharding": "training.fsdp",
}


class MovedModules(MetaPathFinder, Loader):
    """Finder and loader for the old paths: each becomes a module that looks up attributes in the new one."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        is_moved = fullname.startswith("cloud_hf.") and fullname.removeprefix("cloud_hf.") in MOVED
        return ModuleSpec(fullname, self) if is_moved else None

    def exec_module(self, module: ModuleType):
        new_name = f"cloud_hf.{MOVED[module.__name__.removeprefix('cloud_hf.')]}"
        # `warn` skips importlib's frames, so level 2 is the import statement
        warnings.warn(f"{module.__name__} is now {new_name}.", DeprecationWarning, stacklevel=2)
        new = importlib.import_module(new_name)
        module.__doc__ = new.__doc__
        module.__getattr__ = lambda name: getattr(new, name)


_FINDER = MovedModules()


def install():
    """Make the old paths importable."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
