"""Modes of torch that a caller may have set and that training, measuring and model building must not depend on.

Inside ``torch.inference_mode`` derivatives are zero or missing without a warning, and inside ``torch.autocast`` a
training step works on copies of the weights from before the last step. Code that takes derivatives therefore sets
these modes itself.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def own_derivatives() -> Iterator[None]:
    """Record gradients and compute in full precision inside, also in a function that it decorates."""
    with contextlib.ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if it was made in inference mode, since autograd does not take such tensors."""
    return tensor.clone() if tensor.is_inference() else tensor


def check_differentiable(model: nn.Module) -> None:
    """``ValueError`` for a model that was made in inference mode, since autograd does not take its weights."""
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError("the model's weights were made inside torch.inference_mode, where they get no derivatives")


class DrawFrom(torch.overrides.TorchFunctionMode):
    """Inside, ``torch.nn.init`` draws from ``generator``, a CPU one, and parameters are made in float32.

    Torch's own generator and default type belong to all threads, so two models built at once would disturb each other.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if "generator" in kwargs:
            kwargs["generator"] = kwargs["generator"] or self.generator
        if function in (torch.empty, torch.zeros):
            kwargs["dtype"] = kwargs.get("dtype") or torch.float32
        return function(*args, **kwargs)


class Unfilled(torch.overrides.TorchFunctionMode):
    """Inside, ``normal_`` draws nothing, for weights that get their values later.

    On the device "meta" it would import torch's compiler as well, which takes seconds.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") == "normal_":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` was given; any other module as it is."""
    return getattr(model, "_orig_mod", model)
