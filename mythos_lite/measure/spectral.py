"""Is the loop stable? Radii, residuals and gradient norms of the loop map F: h_t → h_{t+1}.

=======================  =====================================================================
name here                symbol and source
=======================  =====================================================================
``decay_radius``         ρ(Ā) of the injection matrix; Parcae (Prairie et al. 2026)
``jacobian_radius``      ρ(J), J = ∂F/∂h at a state: how fast small errors grow or die in the end
``largest_singular_value``  σ_max(J): how much one loop can stretch an error at once
``gains_along_chain``    σ_max of ∂h*_q/∂h_p, h* the state at rest: what is left of an error further on
``gradient_norms``       ‖∂loss/∂h_t‖ per loop; Pascanu et al. 2013, §2
=======================  =====================================================================

ρ(Ā) is about the linear part alone. The map as a whole is stable near a state where ρ(J) < 1, and
σ_max(J) well above 1 does not contradict that: the map is far from normal.

ρ(J) < 1 is stability in time, from loop to loop. A chain longer than any in training asks for another one, in
space: does an error at one position fade on its way to the next? J's off-diagonal blocks decide that, of which its
eigenvalues know nothing.

Attention is causal, so J is block-triangular over positions and its eigenvalues are those of its T
diagonal blocks, D × D each. Taking them block by block is exact, and it avoids the eigenvalues of one
large triangular matrix, which are known only roughly in floating point.

Small models: blocks in full, ``torch.linalg.eigvals``. Larger ones: Arnoldi's iteration (Saad 2011,
§6.2) on forward-mode products with each block, from T copies of the sequence of which copy i is
disturbed at position i alone; σ_max by power iteration on JᵀJ (JVP, then VJP).

Derivatives are taken in full precision and with gradients on, whatever mode of torch the caller is in.

Shapes: T positions, D width, one sequence (B = 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from mythos_lite.checks import check_choice, check_int, check_ints
from mythos_lite.config import TrainConfig
from mythos_lite.model.attention import attention_context
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.model.modes import check_differentiable, ordinary, own_derivatives, unwrapped
from mythos_lite.task.chains import Batch
from mythos_lite.task.loss import chain_loss

METHODS = ("auto", "exact", "iterative")
EXACT_WIDTH = 256
"""Up to this width D ``"auto"`` computes blocks in full."""
EXACT_SIZE = 1024
"""Up to this T·D ``"auto"`` computes the whole Jacobian for σ_max."""
_BREAKDOWN = 1e-6
_AT_ONCE = 2**20
"""Numbers of J, rows by inputs, that are computed together: what the backward pass keeps is some hundred times that."""

LoopMap = Callable[[Tensor], Tensor]


@torch.no_grad()
def decay_radius(model: RecurrentDepthTransformer) -> float:
    """ρ(Ā): the largest of the injection's decays, below 1 at every parameter value."""
    return model.injection.decay().max().item()


def make_loop_map(model: RecurrentDepthTransformer, token_ids: Tensor, t: int = 0) -> tuple[LoopMap, Tensor]:
    """F of loop ``t`` (from 0) for a sequence (1, T), and e (1, T, D), where the loop starts.

    The map takes any number of copies, (N, T, D). Only a loop-index embedding or a depth-wise
    adapter makes F depend on ``t``.
    """
    model = unwrapped(model)
    model.check_input(token_ids, None, None)
    check_differentiable(model)
    t = check_int("t", t, 0)
    if token_ids.shape[0] != 1:
        raise ValueError(
            f"the loop map is studied for one sequence at a time; token_ids has shape {tuple(token_ids.shape)}"
        )
    with own_derivatives(), torch.no_grad():
        positions = attention_context(model.config, token_ids.shape[1], None, token_ids.device)
        e = model.encode(token_ids, positions)

    def loop_map(h: Tensor) -> Tensor:
        return model.loop_map(h, e.expand(h.shape), t, positions)[0]

    return loop_map, e


@own_derivatives()
def jacobian(loop_map: LoopMap, h: Tensor) -> Tensor:
    """J at the state h (1, T, D): (T·D, T·D), rows outputs, columns inputs."""
    h, out = _differentiable(loop_map, _checked(h, "exact"))
    return torch.cat([_rows(out, h, position).flatten(1) for position in range(h.shape[1])])


@own_derivatives()
def jacobian_radius(
    loop_map: LoopMap, h: Tensor, *, method: str = "auto", n_iterations: int = 24, seed: int = 0
) -> float:
    """ρ(J) at the state h (1, T, D).

    ``"exact"`` takes D backward passes at once, ``"iterative"`` at most ``n_iterations`` forward
    ones; it is exact too once ``n_iterations`` reaches D. NaN where J is not finite.
    """
    h, n_iterations = _checked(h, method), check_int("n_iterations", n_iterations, 1)
    if method == "exact" or (method == "auto" and h.shape[2] <= EXACT_WIDTH):
        return _largest_modulus(_position_blocks(loop_map, h))
    return _arnoldi_radius(lambda v: _position_jvp(loop_map, h, v), h, n_iterations, seed)


@own_derivatives()
def largest_singular_value(
    loop_map: LoopMap,
    h: Tensor,
    *,
    method: str = "auto",
    n_iterations: int = 200,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> float:
    """σ_max(J) at the state h (1, T, D). NaN where J is not finite.

    Iteration stops when the value moves by less than ``tolerance`` (relative).
    """
    h, n_iterations = _checked(h, method), check_int("n_iterations", n_iterations, 1)
    if method == "exact" or (method == "auto" and h[0].numel() <= EXACT_SIZE):
        dense = jacobian(loop_map, h)
        dense = dense if dense.dtype == torch.float64 else dense.float()  # LAPACK has no bfloat16
        return torch.linalg.svdvals(dense)[0].item() if torch.isfinite(dense).all() else math.nan
    v = _random_like(h, seed)
    v, sigma = v / v.norm(), 0.0
    for _ in range(n_iterations):
        u = _jvp(loop_map, h, v)
        before, sigma = sigma, u.norm().item()
        if sigma == 0.0 or abs(sigma - before) <= tolerance * sigma:
            break
        v = _vjp(loop_map, h, u)
        v = v / v.norm().clamp(min=1e-30)
    return sigma


@own_derivatives()
def gains_along_chain(loop_map: LoopMap, h: Tensor, position: int) -> list[float]:
    """By what a small error held at ``position`` is at most multiplied at positions + 1, + 2, …, once all is at rest.

    With later positions L, the state at rest moves by (I − J_LL)⁻¹ J_Lp times the error; the result is σ_max of that
    response, position by position. It has a meaning where the state h (1, T, D) is at rest and ρ(J) < 1. NaN where J
    is not finite.
    """
    h = _checked(h, "exact")
    position = check_int("position", position, 0, h.shape[1] - 2)
    h, out = _differentiable(loop_map, h)
    gains: list[float] = []
    moved: list[Tensor] = []  # (D, D) each: how the positions so far answer the error
    one = torch.eye(h.shape[2], dtype=torch.float64, device=h.device)
    for later in range(position + 1, h.shape[1]):
        rows = _rows(out, h, later).double()  # (D, T, D)
        if not torch.isfinite(rows).all():  # LAPACK may crash on it
            return [math.nan] * (h.shape[1] - position - 1)
        # J is block-triangular, so its system is solved from the first position to the last.
        pushed = rows[:, position] + sum(rows[:, position + 1 + i] @ answer for i, answer in enumerate(moved))
        moved.append(torch.linalg.solve(one - rows[:, later], pushed))
        gains.append(torch.linalg.svdvals(moved[-1])[0].item())
    return gains


@own_derivatives()
def gradient_norms(model: RecurrentDepthTransformer, train: TrainConfig, batch: Batch, n_loops: int) -> list[float]:
    """‖∂loss/∂h_t‖ for t = 1 … ``n_loops``, of the training loss on this batch; 0 for a state that no weight moves."""
    check_differentiable(model)
    loss, _, steps = chain_loss(model, train, Batch(*map(ordinary, batch)), n_loops)
    states = [step.state for step in steps if step.state.requires_grad]
    found = iter(torch.autograd.grad(loss, states, allow_unused=True) if states else ())
    gradients = [next(found) if step.state.requires_grad else None for step in steps]
    return [0.0 if g is None else g.norm().item() for g in gradients]


@torch.no_grad()
def residuals(model: RecurrentDepthTransformer, batch: Batch, n_loops: int) -> list[float]:
    """‖h_t − h_{t−1}‖ / ‖h_t‖ for t = 1 … ``n_loops``, mean over the tokens that are not padding."""
    read = torch.arange(batch.token_ids.shape[1], device=batch.token_ids.device) <= batch.answer_positions.unsqueeze(1)
    return [step.residual()[read].mean().item() for step in model.loop(batch.token_ids, n_loops)]


def loop_radii(model: RecurrentDepthTransformer, token_ids: Tensor, loops: Iterable[int]) -> list[float]:
    """ρ(J) of the map of each of ``loops`` (from 1) at the state it is given, for one sequence (1, T)."""
    wanted = sorted(set(check_ints("loops", loops, 1)))
    with own_derivatives(), torch.no_grad():
        before = {step.loop: step.previous for step in model.loop(token_ids, wanted[-1]) if step.loop in wanted}
    return [jacobian_radius(make_loop_map(model, token_ids, loop - 1)[0], before[loop]) for loop in wanted]


def monitor(model: RecurrentDepthTransformer, train: TrainConfig, batch: Batch, n_loops: int) -> dict:
    """One line for the log: all of the above on a few chains, ρ(J) for the last (longest) of them alone.

    ``jacobian_radius`` is that of the last loop's map, the closest to where the state comes to rest: those of
    all loops would cost far more than the rest together. ``loop_radii`` gives them.
    """
    few = Batch(*(tensor[-16:] for tensor in batch))
    chain = few.token_ids[-1:, : int(few.answer_positions[-1]) + 1]
    return {
        "decay_radius": decay_radius(model),
        "jacobian_radius": loop_radii(model, chain, [n_loops])[0],
        "residuals": residuals(model, few, n_loops),
        "gradient_norms": gradient_norms(model, train, few, n_loops),
    }


def _checked(h: Tensor, method: str) -> Tensor:
    """The state, if it is one and the method is known."""
    check_choice("method", method, METHODS)
    if not isinstance(h, Tensor):
        raise ValueError(f"the state must be a tensor of shape (1, T, D), not {type(h).__name__}")
    if h.ndim != 3 or h.shape[0] != 1 or not h.numel() or not h.is_floating_point():
        raise ValueError(f"the state must be floating-point numbers of shape (1, T, D), not {h.dtype} {tuple(h.shape)}")
    return ordinary(h.detach())


def _differentiable(loop_map: LoopMap, h: Tensor) -> tuple[Tensor, Tensor]:
    """The state as a leaf of the graph, and the state after it.

    Raises:
        ValueError: for a map that leaves no trace for autograd: its derivative would read as zero.
    """
    h = h.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # fused kernels cannot take many gradients at once
        out = loop_map(h)
    if not out.requires_grad:
        raise ValueError(
            "no derivative can be taken through this loop map; does it run in torch.no_grad or torch.inference_mode, "
            "or detach its state?"
        )
    return h, out


def _rows(out: Tensor, h: Tensor, position: int) -> Tensor:
    """The rows of J that belong to one position's outputs: (D, T, D), outputs by inputs."""
    seeds = torch.eye(h.shape[2], dtype=out.dtype, device=h.device)
    # Anomaly mode looks into every gradient, which cannot be done for many at once.
    with torch.autograd.set_detect_anomaly(False):
        parts = [
            torch.autograd.grad(out[0, position], h, part, retain_graph=True, is_grads_batched=True, allow_unused=True)
            for part in seeds.split(max(1, _AT_ONCE // h.numel()))
        ]
    return torch.cat([h.new_zeros(len(seeds), *h.shape) if rows is None else rows for (rows,) in parts])[:, 0]


def _random_like(h: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(check_int("seed", seed, 0))
    return torch.randn(h.shape, generator=generator, dtype=torch.float32, device="cpu").to(h.device, h.dtype)


def _jvp(loop_map: LoopMap, h: Tensor, v: Tensor) -> Tensor:
    # Fused attention kernels have no forward-mode derivative; the plain one does.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        out = forward_ad.unpack_dual(loop_map(forward_ad.make_dual(h, v)))
        return torch.zeros_like(h) if out.tangent is None else out.tangent


def _vjp(loop_map: LoopMap, h: Tensor, u: Tensor) -> Tensor:
    h = h.detach().requires_grad_()
    return torch.autograd.grad(loop_map(h), h, u)[0]


def _position_blocks(loop_map: LoopMap, h: Tensor) -> Tensor:
    """The diagonal blocks of J: (T, D, D)."""
    h, out = _differentiable(loop_map, h)
    return torch.stack([_rows(out, h, position)[:, position] for position in range(h.shape[1])])


def _position_jvp(loop_map: LoopMap, h: Tensor, v: Tensor) -> Tensor:
    """Every diagonal block times its own vector: (T, D) → (T, D)."""
    n, d = v.shape
    place = torch.arange(n, device=h.device)
    tangent = torch.zeros(n, n, d, device=h.device, dtype=h.dtype)
    tangent[place, place] = v
    return _jvp(loop_map, h.detach().expand(n, n, d).contiguous(), tangent)[place, place]


def _arnoldi_radius(apply: Callable[[Tensor], Tensor], h: Tensor, n_iterations: int, seed: int) -> float:
    """Largest modulus among the Ritz values of T operators at once, each on its own D-vector."""
    v = _random_like(h, seed)[0]
    basis = [v / v.norm(dim=-1, keepdim=True)]
    steps = min(n_iterations, h.shape[2])
    hessenberg = torch.zeros(h.shape[1], steps + 1, steps, dtype=torch.float64, device="cpu")
    alive = torch.ones(h.shape[1], dtype=torch.bool, device=h.device)  # whose Krylov space still grows
    for k in range(steps):
        w = apply(basis[k])
        scale = w.norm(dim=-1)
        for _ in range(2):  # once more against rounding
            for j, b in enumerate(basis):
                overlap = (w * b).sum(-1)
                hessenberg[:, j, k] += overlap.cpu().double()
                w = w - overlap.unsqueeze(-1) * b
        norm = w.norm(dim=-1)
        alive = alive & (norm > _BREAKDOWN * scale)
        hessenberg[:, k + 1, k] = torch.where(alive, norm, 0.0).cpu().double()
        # A dead space is continued by zeros: its further columns add only eigenvalues 0.
        basis.append(torch.where(alive.unsqueeze(-1), w / norm.clamp(min=1e-30).unsqueeze(-1), 0.0))
    return _largest_modulus(hessenberg[:, :steps])


def _largest_modulus(matrices: Tensor) -> float:
    """Largest modulus of an eigenvalue; NaN for matrices that are not finite, on which LAPACK may crash."""
    if not torch.isfinite(matrices).all():
        return math.nan
    matrices = matrices if matrices.dtype == torch.float64 else matrices.float()  # LAPACK has no bfloat16
    return torch.linalg.eigvals(matrices).abs().max().item()
