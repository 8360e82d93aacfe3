"""Modes of torch that a caller may have set, and that a function with a derivative of its own must not inherit.

Inside ``torch.inference_mode`` every derivative is zero or missing without a word, inside ``torch.autocast`` a
training step works on copies of the weights that were made before the last one. Whoever owns a training loop or a
derivative therefore sets these modes itself. Two modes of our own stand beside them, for how a model is built.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_DRAWS = frozenset(
    {torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli, torch.multinomial}
    | {getattr(Tensor, name) for name in ("normal_", "uniform_", "random_", "bernoulli_", "exponential_")}
)
_MADE = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})
_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextlib.contextmanager
def own_derivatives() -> Iterator[None]:
    """While it lasts, or in the function that it decorates, gradients are recorded and computed in full precision."""
    with contextlib.ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in _DEVICES:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or its copy if it was made in inference mode: autograd takes no such tensors."""
    return tensor.clone() if tensor.is_inference() else tensor


def check_differentiable(model: nn.Module) -> None:
    """``ValueError`` for a model that was made in inference mode, whose weights autograd does not take."""
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError(
            "the model's weights were made inside torch.inference_mode, where no derivative can be taken; "
            "build or load the model outside"
        )


class DrawFrom(torch.overrides.TorchFunctionMode):
    """While it lasts, this thread's random numbers come from ``generator``, a CPU one, and are float32.

    Torch's own generator is shared by all threads, so two models that are built at once would mix their draws; so is
    its default type.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if (function in _DRAWS or "generator" in kwargs) and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        if function in _MADE and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        return function(*args, **kwargs)


class Unfilled(torch.overrides.TorchFunctionMode):
    """While it lasts, what initial values would be written into keeps what it holds.

    For models that get their weights from a file: on the device "meta", where they are built, such a write would
    load torch's compiler first.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return kwargs["out"] if name == "eye" and "out" in kwargs else function(*args, **kwargs)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` was given; any other module as it is."""
    return getattr(model, "_orig_mod", model)
