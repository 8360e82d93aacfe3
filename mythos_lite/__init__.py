"""Recurrent-depth transformers, small enough to read: one block, looped as often as you ask."""

from mythos_lite.config import ModelConfig, TrainConfig
from mythos_lite.files.checkpoint import CheckpointError
from mythos_lite.model.cache import Cache
from mythos_lite.model.halting import ConvergenceExit
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.task.chains import ChainTask
from mythos_lite.training.recipes import recipe

__version__ = "0.1.0"
__all__ = [
    "Cache",
    "ChainTask",
    "CheckpointError",
    "ConvergenceExit",
    "ModelConfig",
    "RecurrentDepthTransformer",
    "TrainConfig",
    "recipe",
]
