"""Is the loop stable? Spectral radii, singular values, residuals and gradient norms of the loop map F: h_t → h_{t+1}.

=======================  =====================================================================
name here                symbol and source
=======================  =====================================================================
``decay_radius``         ρ(Ā) of the injection matrix; Parcae (Prairie et al. 2026)
``jacobian_radius``      ρ(J), J = ∂F/∂h at a state: how fast small errors grow or die in the end
``largest_singular_value``  σ_max(J): how much one loop can stretch an error at once
``gains_along_chain``    σ_max of ∂h*_q/∂h_p, h* the state at rest: what is left of an error further on
``gradient_norms``       ‖∂loss/∂h_t‖ per loop; Pascanu et al. 2013, §2
=======================  =====================================================================

ρ(Ā) is about the linear part alone. Near a state where ρ(J) < 1 the map as a whole is stable, even if σ_max(J) is
well above 1: the map is far from normal, so an error may grow at first and die out later.

ρ(J) < 1 is stability in time, from loop to loop. A chain longer than any in training also needs stability in space:
an error at one position must fade on its way to the next ones. The eigenvalues of J say nothing about that; it depends
on the blocks off J's diagonal, and ``gains_along_chain`` measures it.

Attention is causal, so J is block-triangular over positions, and its eigenvalues are those of its T diagonal blocks,
D × D each. Taking them block by block is exact, and it avoids the eigenvalues of one large triangular matrix, which
floating point gives only roughly.

Small problems are computed in full. In larger ones Arnoldi's iteration (Saad 2011, §6.2) on products of vectors with
all blocks at once finds ρ(J), and power iteration on JᵀJ finds σ_max. Derivatives are taken in full precision and with
gradients on, whatever mode of torch the caller has set.

Shapes: T positions, D width, one sequence (B = 1).
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mythos_lite.checks import check_choice, check_int, check_ints
from mythos_lite.config import TrainConfig
from mythos_lite.model.attention import attention_context
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.model.modes import check_differentiable, ordinary, own_derivatives, unwrapped
from mythos_lite.task.chains import Batch
from mythos_lite.task.loss import chain_loss

METHODS = ("auto", "exact", "iterative")
EXACT_NUMBERS = 2**20
"""``"auto"`` is exact while what it needs of J, T blocks of D × D or all of it, holds at most this many numbers."""
_AT_ONCE = 2**18
"""Numbers of J that one backward pass computes. It keeps some hundred times as many in memory."""

LoopMap = Callable[[Tensor], Tensor]


@torch.no_grad()
def decay_radius(model: RecurrentDepthTransformer) -> float:
    """ρ(Ā): the largest of the injection's decays, below 1 at every parameter value; 1 where there is no injection."""
    return model.injection.decay().max().item()


def make_loop_map(model: RecurrentDepthTransformer, token_ids: Tensor, t: int = 0) -> tuple[LoopMap, Tensor]:
    """F of loop ``t`` (from 0) for a sequence (1, T), and e (1, T, D), where the loop starts.

    The map takes any number of copies, (N, T, D). Only a loop-index embedding, a depth-wise adapter or a dilated
    window makes F depend on ``t``.
    """
    model = unwrapped(model)
    model.check_input(token_ids, None, None)
    check_differentiable(model)
    t = check_int("t", t, 0)
    if token_ids.shape[0] != 1:
        raise ValueError(f"the loop map is that of one sequence (1, T); token_ids has shape {tuple(token_ids.shape)}")
    with own_derivatives(), torch.no_grad():
        context = attention_context(model.config, token_ids.shape[1], None, token_ids.device)
        e = model.encode(token_ids, context)
    return lambda h: model.loop_map(h, e.expand(h.shape), t, context)[0], e


@own_derivatives()
def jacobian(loop_map: LoopMap, h: Tensor) -> Tensor:
    """J at the state h (1, T, D): (T·D, T·D), rows outputs, columns inputs."""
    h, out = _run(loop_map, h)
    return torch.cat([_rows(out, h, position).flatten(1) for position in range(h.shape[1])])


@own_derivatives()
def jacobian_radius(
    loop_map: LoopMap, h: Tensor, *, method: str = "auto", n_iterations: int = 24, seed: int = 0
) -> float:
    """ρ(J) at the state h (1, T, D). NaN where J is not finite.

    ``"exact"`` takes D backward passes for each position, ``"iterative"`` at most ``n_iterations``; it is exact too
    once ``n_iterations`` reaches D. ``"auto"`` is exact while T·D² is at most ``EXACT_NUMBERS``.
    """
    n_iterations = check_int("n_iterations", n_iterations, 1)
    h, out = _run(loop_map, h)
    n, d = h.shape[1:]
    if _is_exact(method, n * d * d):
        blocks = h.new_empty(n, d, d)
        for p in range(n):  # a copy, since a view would keep all of the rows in memory
            blocks[p] = _rows(out, h, p)[:, p]
        return _largest(torch.linalg.eigvals, blocks)

    def transposed_blocks(v: Tensor) -> Tensor:  # (T, D) → (T, D): they have the same eigenvalues as the blocks
        return torch.stack([_pull_back(out, h, p, v[p : p + 1])[0, p] for p in range(n)])

    return _arnoldi_radius(transposed_blocks, _draw(h[0], seed), min(n_iterations, d))


@own_derivatives()
def largest_singular_value(
    loop_map: LoopMap, h: Tensor, *, method: str = "auto", n_iterations: int = 200, seed: int = 0
) -> float:
    """σ_max(J) at the state h (1, T, D). NaN where J is not finite.

    Iteration stops early once the value has settled. ``"auto"`` is exact while (T·D)² is at most ``EXACT_NUMBERS``.
    """
    n_iterations = check_int("n_iterations", n_iterations, 1)
    h, out = _run(loop_map, h)
    if _is_exact(method, h.numel() ** 2):
        return _largest(torch.linalg.svdvals, jacobian(loop_map, h))
    v, sigma = _draw(h, seed), 0.0
    for _ in range(n_iterations):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused kernels have no forward-mode derivative
            _, u = torch.func.jvp(loop_map, (h.detach(),), (v / v.norm().clamp(min=1e-30),))
        before, sigma = sigma, u.norm().item()
        if abs(sigma - before) <= 1e-5 * sigma:  # also where both are zero
            break
        (v,) = torch.autograd.grad(out, h, u, retain_graph=True)
    return sigma


@own_derivatives()
def gains_along_chain(loop_map: LoopMap, h: Tensor, position: int) -> list[float]:
    """How much of a small error held at ``position`` reaches each later position, once the loop is at rest again.

    The result has one factor for each of the positions ``position`` + 1, ``position`` + 2, …: the most by which an
    error can be multiplied on its way there. If L are the later positions, the state at rest moves by
    (I − J_LL)⁻¹ J_Lp times the error, and the factor is σ_max of that matrix's rows for the position.

    This has a meaning where the state h (1, T, D) is at rest and ρ(J) < 1. NaN where J is not finite.
    """
    h, out = _run(loop_map, h)
    position = check_int("position", position, 0, h.shape[1] - 2)
    one = torch.eye(h.shape[2], dtype=torch.float64, device=h.device)
    moved = [one]  # (D, D) each: how ``position`` and those after it move with the error
    # J is block-triangular, so the linear system is solved from the first position to the last.
    for later in range(position + 1, h.shape[1]):
        rows = _rows(out, h, later).double()  # (D, T, D)
        if not torch.isfinite(rows).all():  # LAPACK may crash on it
            return [math.nan] * (h.shape[1] - position - 1)
        pushed = sum(rows[:, position + i] @ before for i, before in enumerate(moved))
        moved.append(torch.linalg.solve(one - rows[:, later], pushed))
    return [_largest(torch.linalg.svdvals, response) for response in moved[1:]]


@own_derivatives()
def gradient_norms(model: RecurrentDepthTransformer, train: TrainConfig, batch: Batch, n_loops: int) -> list[float]:
    """‖∂loss/∂h_t‖ for t = 1 … ``n_loops``, of the training loss on this batch; 0 for a state that no weight moves."""
    check_differentiable(model)
    loss, _, turns = chain_loss(model, train, Batch(*map(ordinary, batch)), n_loops)
    states = [turn.state for turn in turns]
    if not states[0].requires_grad:  # nor do the others then: every turn has the same weights
        return [0.0] * n_loops
    return [gradient.norm().item() for gradient in torch.autograd.grad(loss, states, materialize_grads=True)]


@torch.no_grad()
def residuals(model: RecurrentDepthTransformer, batch: Batch, n_loops: int) -> list[float]:
    """‖h_t − h_{t−1}‖ / ‖h_t‖ for t = 1 … ``n_loops``, mean over the tokens that are not padding."""
    read = torch.arange(batch.token_ids.shape[1], device=batch.token_ids.device) <= batch.answer_positions.unsqueeze(1)
    return [turn.residual()[read].mean().item() for turn in model.loop(batch.token_ids, n_loops)]


def loop_radii(model: RecurrentDepthTransformer, token_ids: Tensor, loops: Iterable[int]) -> list[float]:
    """ρ(J) for one sequence (1, T) at each of ``loops`` (from 1): of that loop's map, at the state that it is given."""
    wanted = sorted(set(check_ints("loops", loops, 1)))
    with own_derivatives(), torch.no_grad():
        before = {turn.loop: turn.previous for turn in model.loop(token_ids, wanted[-1]) if turn.loop in wanted}
    return [jacobian_radius(make_loop_map(model, token_ids, loop - 1)[0], before[loop]) for loop in wanted]


def monitor(model: RecurrentDepthTransformer, train: TrainConfig, batch: Batch, n_loops: int) -> dict:
    """One line for the log: all of the above on a few chains, ρ(J) for the last (longest) of them alone.

    ``jacobian_radius`` is that of the last loop's map, the closest to where the state comes to rest. Those of all loops
    would cost far more than the rest together; ``loop_radii`` gives them.
    """
    few = Batch(*(tensor[-16:] for tensor in batch))
    chain = few.token_ids[-1:, : int(few.answer_positions[-1]) + 1]
    return {
        "decay_radius": decay_radius(model),
        "jacobian_radius": loop_radii(model, chain, [n_loops])[0],
        "residuals": residuals(model, few, n_loops),
        "gradient_norms": gradient_norms(model, train, few, n_loops),
    }


def _is_exact(method: str, n_numbers: int) -> bool:
    """Whether ``method`` computes the part of J that it needs, ``n_numbers``, in full."""
    check_choice("method", method, METHODS)
    return method == "exact" or (method == "auto" and n_numbers <= EXACT_NUMBERS)


def _run(loop_map: LoopMap, h: Tensor) -> tuple[Tensor, Tensor]:
    """The state as a leaf of autograd's graph, and the state after it.

    Raises:
        ValueError: for what is no state, and for a map that leaves no graph: its derivative would read as zero.
    """
    if not isinstance(h, Tensor):
        raise ValueError(f"the state must be a tensor of shape (1, T, D), not {type(h).__name__}")
    if h.ndim != 3 or h.shape[0] != 1 or not h.numel() or not h.is_floating_point():
        raise ValueError(f"the state must be floating-point numbers of shape (1, T, D), not {h.dtype} {tuple(h.shape)}")
    h = ordinary(h.detach()).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # fused kernels cannot take many gradients at once
        out = loop_map(h)
    if not out.requires_grad:
        raise ValueError("no derivative can be taken through this loop map; it detaches its state or records no graph")
    return h, out


def _pull_back(out: Tensor, h: Tensor, position: int, vectors: Tensor) -> Tensor:
    """Vectors (N, D) times the rows of J that belong to one position's outputs: (N, T, D)."""
    parts = vectors.split(max(1, _AT_ONCE // h.numel()))
    # Anomaly mode looks into every gradient, which cannot be done for many at once.
    with torch.autograd.set_detect_anomaly(False):
        products = [
            torch.autograd.grad(out[0, position], h, part, True, is_grads_batched=True, materialize_grads=True)[0]
            for part in parts  # where the output ignores h, one zero stands for all products
        ]
    return torch.cat([p.expand(len(part), *h.shape) for p, part in zip(products, parts, strict=True)])[:, 0]


def _rows(out: Tensor, h: Tensor, position: int) -> Tensor:
    """The rows of J that belong to one position's outputs: (D, T, D), outputs by inputs."""
    return _pull_back(out, h, position, torch.eye(h.shape[2], dtype=out.dtype, device=out.device))


def _draw(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(check_int("seed", seed, 0))
    return torch.randn(like.shape, generator=generator, dtype=torch.float32, device="cpu").to(like)


def _arnoldi_radius(apply: Callable[[Tensor], Tensor], v: Tensor, n_iterations: int) -> float:
    """Largest modulus among the Ritz values of T operators at once, each on D-vectors of its own, from v (T, D) on."""
    basis = torch.zeros(n_iterations, *v.shape, dtype=torch.float64, device="cpu")
    images, w, scale = torch.zeros_like(basis), v.cpu().double(), 0.0
    for k in range(n_iterations):
        norm = w.norm(dim=-1, keepdim=True)
        # Where the Krylov space is complete, w is rounding error. Zeros in its place add only eigenvalues 0.
        basis[k] = (w / norm).where(norm > 1e-6 * scale, 0.0)
        images[k] = w = apply(basis[k].to(v.dtype).to(v.device)).cpu().double()
        scale = w.norm(dim=-1, keepdim=True)
        for _ in range(2):  # the second time takes away what rounding has left
            w = w - ((basis * w).sum(dim=-1, keepdim=True) * basis).sum(dim=0)
    return _largest(torch.linalg.eigvals, torch.einsum("itd,jtd->tij", basis, images))


def _largest(decompose: Callable[[Tensor], Tensor], matrices: Tensor) -> float:
    """Largest modulus of an eigenvalue or singular value; NaN for matrices that are not finite: LAPACK may crash."""
    if not torch.isfinite(matrices).all():
        return math.nan
    matrices = matrices if matrices.dtype == torch.float64 else matrices.float()  # LAPACK has no bfloat16
    return decompose(matrices).abs().max().item()
