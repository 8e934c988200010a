"""
Register the model, its config and the pipeline with transformers, without importing transformers.

`import cloud_hf` must be fast, and importing transformers takes seconds. So each class is registered as soon as two modules
are loaded, in either order: the transformers module with its registry, and our module that defines it.
"""

import functools
import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def _register_config():
    from transformers import AutoConfig

    from .configuration_cloud import CLoudConfig

    AutoConfig.register("cloud", CLoudConfig)
    CLoudConfig.register_for_auto_class()


def _register_model():
    from transformers import AutoModel, AutoModelForSequenceClassification

    from .configuration_cloud import CLoudConfig
    from .modeling_cloud import CLoudForRewardModeling

    AutoModel.register(CLoudConfig, CLoudForRewardModeling)
    AutoModelForSequenceClassification.register(CLoudConfig, CLoudForRewardModeling)
    CLoudForRewardModeling.register_for_auto_class("AutoModel")


def _register_pipeline():
    from transformers import AutoModelForSequenceClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from .pipeline import CLoudPipeline

    PIPELINE_REGISTRY.register_pipeline(
        "critique-reward", pipeline_class=CLoudPipeline, pt_model=AutoModelForSequenceClassification, type="text"
    )


# transformers' module with the registry: our module, and the function that registers its class
_REGISTRIES = {
    "transformers.models.auto.configuration_auto": ("cloud_hf.configuration_cloud", _register_config),
    "transformers.models.auto.modeling_auto": ("cloud_hf.modeling_cloud", _register_model),
    "transformers.pipelines": ("cloud_hf.pipeline", _register_pipeline),
}
_WATCHED = {*_REGISTRIES, *(ours for ours, _ in _REGISTRIES.values())}
_executing: set[str] = set()
_registered: set[str] = set()


def register_loaded():
    """Register each class whose registry is loaded. A module that is still being imported is left to a later call."""
    for registry, (ours, register) in _REGISTRIES.items():
        if registry in sys.modules and not _executing & {registry, ours} and registry not in _registered:
            importlib.import_module(ours)  # may also register the class
            if registry not in _registered:
                _registered.add(registry)
                register()


class WatchedModules:
    """Finder that calls [`register_loaded`] after each of the modules above has been executed."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name not in _WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            # Patch the instance, not its class: inspect and importlib.resources find the source by the loader's type
            spec.loader.exec_module = functools.partial(_execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _execute(exec_module, module: ModuleType):
    _executing.add(module.__name__)
    try:
        exec_module(module)
    finally:
        _executing.discard(module.__name__)
    register_loaded()


def install():
    """Register what can be registered now, and the rest when it is imported."""
    if WatchedModules not in sys.meta_path:
        sys.meta_path.insert(0, WatchedModules)
    register_loaded()
