"""Weights of 8 or 4 bits: a trained model's matrices as whole numbers with a scale.

==================  ==========================================================================
name here           what it is, and its source
==================  ==========================================================================
``codes``, q        whole numbers, two of 4 bits in a byte
``scale``, s        w ≈ s·q, s = max|w| / (2ᵇ⁻¹ − ½), as ``torchao``'s symmetric quantisation
``granularity``     what shares a scale: a matrix, the inputs of one output, or a group of them
``calibration``     tokens; errors of a weight are made up for by the weights after it, by the
                    second moments of the inputs: GPTQ (Frantar et al. 2023, algorithm 1)
==================  ==========================================================================

Matrices of prelude, core, coda and injection are quantised, those of experts and latent attention too; embedding,
norms, router, halting and depth adapter stay as they are. Activations do, too (weight-only). The numbers are made
floats again wherever a weight is read, by ``torch.nn.utils.parametrize``: in torch that costs time, unless the reading
is done inside ``parametrize.cached()``. In a file of ``export_onnx`` they stay whole numbers.

The injection's B, by which the input enters, keeps 8 bits. It begins as the identity, and a scale that fits its
diagonal rounds much of the rest to nothing where a weight has 4.

Why not a library's: on a CPU the tensors of torchao 0.18 stand only in linear layers, keep 4 bits in a byte each, and
its GPTQ asks for a GPU; the quantisers of onnxruntime 1.32 calibrate what stands outside of a ``Loop``.

Shapes: B batch, T positions, … matrices (one, or one for each expert or head), n outputs, m inputs, G groups.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mythos_lite.checks import check_choice, check_int, reject
from mythos_lite.files.checkpoint import find_flaw
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.model.moe import SparseMoE

_PARTS = ("prelude", "core", "coda", "injection")
_DAMPING = 0.01  # of the mean second moment, as in GPTQ


def quantize(
    model: RecurrentDepthTransformer, bits: int, granularity: str | int = "channel", *,
    calibration: Tensor | None = None, n_loops: int | None = None, injection_bits: int = 8,
) -> RecurrentDepthTransformer:  # fmt: skip
    """A copy of ``model`` with weights of 8 or 4 bits, which is used like the original, but not trained or saved.

    Args:
        granularity: ``"tensor"``, ``"channel"`` (one scale for each output) or a number of inputs that share one.
        calibration: (B, T) tokens such as the model is used on, without padding. Given, linear layers are rounded by
            GPTQ, for the inputs that the original gives them in ``n_loops`` loops (its own count if not given).
        injection_bits: those of the injection's matrix, if it has one.

    Raises:
        ValueError: for a model that is quantised or whose weights are not finite float32, other bits or granularities,
            groups that do not divide a matrix's inputs, and as ``model(calibration, n_loops=n_loops)``.
    """
    for field, value in (("bits", bits), ("injection_bits", injection_bits)):
        if check_int(field, value, 4, 8) not in (4, 8):
            reject(field, value, "weights can have 8 or 4 bits")
    if isinstance(granularity, str):
        check_choice("granularity", granularity, ("tensor", "channel"))
    else:
        granularity = check_int("granularity", granularity, 2)
    if any(map(parametrize.is_parametrized, model.modules())):
        raise ValueError("the model is quantised already; quantise the original")
    if (flaw := find_flaw(model.state_dict())) or model.embedding.weight.dtype != torch.float32:
        raise ValueError(flaw or "the weights must be float32; convert them first: model.float()")
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    moments = {} if calibration is None else _second_moments(twin, calibration, n_loops)
    for path, module in list(twin.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if path.startswith(_PARTS) and parameter.ndim > 1 and not path.endswith("router"):
                across = isinstance(module, SparseMoE)
                width = parameter.shape[-2 if across else -1]
                group = width if isinstance(granularity, str) else granularity
                if width % group or group % 2:
                    reject("granularity", granularity, f"{path}.{name} has {width} inputs, and groups are even")
                own_bits = injection_bits if path == "injection" else bits
                rounding = _Rounded(own_bits, group, granularity == "tensor", across, moments.get(path))
                parametrize.register_parametrization(module, name, rounding)
                rounding.moments = None
    return twin


class _Rounded(nn.Module):
    """A weight (…, n, m), or (…, m, n) with ``across``, as codes and scales; ``parametrize`` calls both ways."""

    def __init__(self, bits: int, group: int, whole: bool, across: bool, moments: Tensor | None) -> None:
        super().__init__()
        self.bits, self.group, self.whole, self.across, self.moments = bits, group, whole, across, moments

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight → codes (…, n, G, m / G), of 4 bits half as many, and scales (…, n or 1, G or 1, 1)."""
        weight = weight.mT if self.across else weight
        groups = weight.unflatten(-1, (-1, self.group))  # (…, n, G, m / G)
        half = 2 ** (self.bits - 1)
        largest = groups.abs().amax((-3, -2, -1) if self.whole else -1, keepdim=True)
        scale = (largest / (half - 0.5)).clamp(min=torch.finfo(weight.dtype).eps)
        spread = scale.expand_as(groups).flatten(-2)  # (…, n, m)
        codes = _nearest(weight, spread, half) if self.moments is None else _gptq(weight, spread, half, self.moments)
        codes = codes.unflatten(-1, (-1, self.group))
        if self.bits == 8:
            return codes.to(torch.int8), scale
        low, high = (codes + half).to(torch.uint8).chunk(2, dim=-1)
        return low + 16 * high, scale

    def forward(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Codes and scales → weight."""
        if self.bits == 4:
            both = codes.to(scale.dtype)  # floats, since ONNX has few operators for bytes
            high = (both / 16).floor()
            codes = torch.cat([both - 16 * high, high], dim=-1) - 8
        weight = (codes * scale).flatten(-2)
        return weight.mT if self.across else weight


def _nearest(weight: Tensor, scale: Tensor, half: int) -> Tensor:
    """The codes of a weight; by the reciprocal, as in torchao, so that ties fall alike."""
    return (weight * scale.reciprocal()).round().clamp(-half, half - 1)


def _gptq(weight: Tensor, scale: Tensor, half: int, moments: Tensor) -> Tensor:
    """Codes (n, m) of a weight (n, m) whose inputs have the second moments (m, m)."""
    damping = _DAMPING * moments.diagonal().mean() * torch.eye(len(moments)).to(moments)
    inverse = torch.linalg.cholesky(torch.linalg.inv(moments + damping), upper=True)
    weight, codes = weight.clone(), torch.empty_like(weight)
    for j in range(weight.shape[1]):
        codes[:, j] = _nearest(weight[:, j], scale[:, j], half)
        error = (weight[:, j] - codes[:, j] * scale[:, j]) / inverse[j, j]
        weight[:, j:] -= torch.outer(error, inverse[j, j:])
    return codes


@torch.no_grad()
def _second_moments(model: RecurrentDepthTransformer, token_ids: Tensor, n_loops: int | None) -> dict[str, Tensor]:
    """Path of each linear layer, and of the injection → Σ x xᵀ over its inputs at every position and loop, (m, m)."""
    found: dict[str, Tensor] = {}

    def watch(path: str):
        def add(module: nn.Module | None, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2)
            found[path] = found.get(path, 0.0) + x.T @ x

        return add

    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(watch(path)) for path, module in layers]
    for turn in model.loop(token_ids, n_loops):
        if turn.loop == 1:
            watch("injection")(None, (turn.previous,))  # e, which the injection is given outside of its forward
    model.read_out(turn.output)
    for handle in handles:
        handle.remove()
    return found
