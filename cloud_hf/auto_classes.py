"""
Register the model, its config and the pipeline with transformers, without importing transformers.

`import cloud_hf` must be fast, and importing transformers takes seconds. Each class is therefore registered as soon as
two modules are loaded, in either order: the transformers module that contains the registry, and our module that defines the
class.
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


# Maps each transformers module with a registry to our module and the function that registers its class
_REGISTRIES = {
    "transformers.models.auto.configuration_auto": ("cloud_hf.configuration_cloud", _register_config),
    "transformers.models.auto.modeling_auto": ("cloud_hf.modeling_cloud", _register_model),
    "transformers.pipelines": ("cloud_hf.pipeline", _register_pipeline),
}
_WATCHED = {*_REGISTRIES, *(ours for ours, _ in _REGISTRIES.values())}
_executing: set[str] = set()
_registered: set[str] = set()


def register_loaded():
    """Register each class whose registry is loaded. If a module is still being imported, a later call registers its class."""
    for registry, (ours, register) in _REGISTRIES.items():
        if registry in sys.modules and not _executing & {registry, ours} and registry not in _registered:
            importlib.import_module(ours)  # this import may already register the class
            if registry not in _registered:
                _registered.add(registry)
                register()


class WatchedModules:
    """Import finder that calls [`register_loaded`] after executing a module that contains a registry or defines a class to register."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name not in _WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            # Patch the loader instance, not its class: inspect and importlib.resources use the loader's type to find the source
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
    """Register each class now if its registry is already loaded, and otherwise once the registry is imported."""
    if WatchedModules not in sys.meta_path:
        sys.meta_path.insert(0, WatchedModules)
    register_loaded()
