"""Recurrent-depth transformers, small enough to read: one block, looped as often as you ask."""

from mythos_lite.cache import Cache
from mythos_lite.checkpoint import CheckpointError
from mythos_lite.config import ModelConfig, TrainConfig, recipe
from mythos_lite.data import ChainTask
from mythos_lite.halting import ConvergenceExit
from mythos_lite.model import RecurrentDepthTransformer

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
