"""Exercises of lesson 3, the recurrent loop."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mythos_lite.config import ModelConfig
from mythos_lite.lessons.exercise import Exercise, as_answer, difference, fitting_hint, gradient_fault, is_number, same
from mythos_lite.model.attention import attention_context
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.task.chains import Batch, ChainTask, make_generator
from mythos_lite.training.trainer import build_model

# ---------------------------------------------------------------- 3.1


def step(h: Tensor, e: Tensor, core: Callable, A: Tensor, B: Tensor) -> Tensor:
    """State and input (B, T, D), a function, decay (D,) and matrix (D, D) → next state (B, T, D)."""
    # What is left of the state, channel by channel, and the input through its matrix.
    x = A * h + F.linear(e, B)
    # The block or blocks that are shared, with their residual connections, and the bound on the state.
    return torch.tanh(core(x))


def _step_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for batch, length, width in ((1, 1, 2), (2, 3, 5), (3, 4, 4)):
        h, e = (torch.randn(batch, length, width, generator=generator) for _ in range(2))
        A, B = torch.rand(width, generator=generator), torch.randn(width, width, generator=generator)
        weight = torch.randn(width, width, generator=generator)

        def core(x, weight=weight):
            return x + torch.sin(x @ weight)

        cases.append((h, e, core, A, B))
    return cases


def _on_clones(answer: Callable, case: tuple) -> tuple[object, str | None]:
    """The answer on copies of a case's tensors, and which of these it has changed, in words."""
    copies = [x.clone() if isinstance(x, Tensor) else x for x in case]
    got = answer(*copies)
    names = ("h", "e", "core", "A", "B")
    for name, copy, original in zip(names, copies, case, strict=False):
        if isinstance(original, Tensor) and not torch.equal(copy, original):
            return got, f"it changes its argument {name} in place; a loop needs it again, so make a new tensor"
    return got, None


def _fault_in_step_shape(answer: Callable) -> str | None:
    for case in _step_cases():
        got, changed = _on_clones(answer, case)
        wanted = tuple(case[0].shape)
        if changed:
            return changed
        if not isinstance(got, Tensor) or tuple(got.shape) != wanted:
            return difference(got, case[0], math.inf)
    return None


def _fault_in_step_values(answer: Callable) -> str | None:
    cases = _step_cases()[1:]
    suspects = {
        "B̄ is applied the wrong way round: an output channel is a row of it, F.linear(e, B) or e @ B.T": lambda h, e, core, A, B: (  # noqa: E501
            torch.tanh(core(A * h + e @ B))
        ),
        "the tanh at the end is missing": lambda h, e, core, A, B: core(A * h + F.linear(e, B)),
        "the tanh comes before the core; it belongs behind it": lambda h, e, core, A, B: core(
            torch.tanh(A * h + F.linear(e, B))
        ),
        "the input is not injected: B̄ e is missing": lambda h, e, core, A, B: torch.tanh(core(A * h)),
        "the state does not come in: Ā ⊙ h is missing": lambda h, e, core, A, B: torch.tanh(core(F.linear(e, B))),
        "the decay of the state is missing: Ā ⊙ h, not h": lambda h, e, core, A, B: torch.tanh(
            core(h + F.linear(e, B))
        ),
        "e is added as it is; it comes in through the matrix B̄": lambda h, e, core, A, B: torch.tanh(core(A * h + e)),
        "the core stands beside the injection; here it stands behind it, and sees Ā ⊙ h + B̄ e": lambda h, e, core, A, B: (  # noqa: E501
            torch.tanh(A * h + F.linear(e, B) + core(h))
        ),
        "the residual is added twice: the core holds its residual connections itself": lambda h, e, core, A, B: (
            torch.tanh(A * h + F.linear(e, B) + core(A * h + F.linear(e, B)))
        ),
        "h and e have changed places": lambda h, e, core, A, B: torch.tanh(core(A * e + F.linear(h, B))),
        "the core is missing": lambda h, e, core, A, B: torch.tanh(A * h + F.linear(e, B)),
    }
    answers = [_on_clones(answer, case)[0] for case in cases]
    for case, got in zip(cases, answers, strict=True):
        if fault := difference(got, step(*case)):
            return fitting_hint(suspects, cases, answers) or f"for a state of shape {tuple(case[0].shape)}: {fault}"
    return None


def _fault_in_step_gradient(answer: Callable) -> str | None:
    return gradient_fault(answer, step, *_step_cases()[1])


# ---------------------------------------------------------------- 3.2


class LoopedTransformer(nn.Module):
    """A recurrent-depth transformer on the weights of ``model``, one of the package's."""

    def __init__(self, model: RecurrentDepthTransformer) -> None:
        super().__init__()
        self.model = model

    def run(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        """Given. Blocks one after the other: (B, T, D) → (B, T, D)."""
        context = attention_context(self.model.config, x.shape[1], None, x.device)  # who sees whom, rotary angles
        for block in blocks:
            x, _ = block(x, context)  # the second is what a router did, where there are experts
        return x

    def lti(self) -> tuple[Tensor, Tensor]:
        """Given. The model's Ā (D,) and B̄ (D, D)."""
        injection = self.model.injection
        return injection.decay(), F.softplus(injection.delta).unsqueeze(1) * injection.b  # B̄ = Δ·B

    def encode(self, token_ids: Tensor) -> Tensor:
        """Token ids (B, T) → e (B, T, D): the embedding, then the prelude."""
        return self.run(self.model.prelude, self.model.embedding(token_ids))

    def next_state(self, h: Tensor, e: Tensor) -> Tensor:
        """State and input (B, T, D) → next state (B, T, D): one ``step`` with the model's core, Ā and B̄."""
        A, B = self.lti()
        return step(h, e, lambda x: self.run(self.model.core, x), A, B)

    def read_out(self, h: Tensor) -> Tensor:
        """State (B, T, D) → logits (B, T, V): the coda, the last norm, and the head."""
        h = self.model.norm(self.run(self.model.coda, h))
        return F.linear(h, self.model.embedding.weight)  # the head is the embedding's matrix once more

    def forward(self, token_ids: Tensor, n_loops: int) -> Tensor:
        """Token ids (B, T) → logits (B, T, V), after ``n_loops`` loops from h₀ = e on."""
        e = self.encode(token_ids)
        h = e
        for _ in range(n_loops):
            h = self.next_state(h, e)
        return self.read_out(h)


@functools.cache
def _small_model(window: int | None = 2) -> RecurrentDepthTransformer:
    """A model whose parts all matter: two blocks in prelude, core and coda, large weights, a B̄ with structure."""
    config = ModelConfig(
        d_model=16, n_heads=2, n_kv_heads=1, d_ff=24, window=window, n_prelude_layers=2, n_core_layers=2,
        n_coda_layers=2, initializer_range=0.4,
    )  # fmt: skip
    model = build_model(config, seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in (model.injection.a, model.injection.delta, model.injection.b, model.norm.weight):
            tensor.add_(0.5 * torch.randn(tensor.shape, generator=generator))
    return model


def _ids() -> Tensor:
    return torch.randint(0, 7, (2, 6), generator=torch.Generator().manual_seed(4))


def _part(looped: object, name: str, *inputs: Tensor) -> object:
    """What a method gives; three dots count as not done."""
    if not hasattr(looped, name):
        raise TypeError(f"the class has no method {name}")
    try:
        got = getattr(looped, name)(*inputs)
    except NotImplementedError as error:
        if "ModuleList" not in str(error):  # what PyTorch says when a list of blocks is called
            raise
        raise TypeError(
            "model.prelude, model.core and model.coda are lists of blocks, which cannot be called; run one with "
            "self.run(self.model.core, x), and hand `step` a function: lambda x: self.run(self.model.core, x)"
        ) from error
    if got is ...:
        raise NotImplementedError
    return as_answer(got)


def _fault_in_encode(answer: Callable) -> str | None:
    for model in (_small_model(), _small_model(window=None)):
        looped, reference, ids = answer(model), LoopedTransformer(model), _ids()
        if not isinstance(looped, nn.Module):
            return "it is no nn.Module: class LoopedTransformer(nn.Module), with super().__init__() first"
        if getattr(looped, "model", None) is not model:
            return "it does not keep the model as self.model, which the cells below read"
        if not list(looped.parameters()):
            return "its parameters() is empty, so nothing could train it: set self.model = model, which registers it"
        got, e = _part(looped, "encode", ids), reference.encode(ids).detach()
        if fault := difference(got, e):
            x = model.embedding(ids)
            suspects = {
                "the prelude is missing": x,
                "only the first block of the prelude runs": reference.run(model.prelude[:1], x),
                "the core has run already; it belongs into next_state": reference.run(model.core, e),
            }
            return _closest(got, suspects) or fault
    return None


def _closest(got: object, suspects: dict[str, Tensor]) -> str:
    """The hint of the first suspect that a tensor equals."""
    return next((hint for hint, wrong in suspects.items() if same(got, wrong.detach(), 1e-4)), "")


def _fault_in_next_state(answer: Callable) -> str | None:
    model = _small_model()
    looped, reference = answer(model), LoopedTransformer(model)
    e = reference.encode(_ids()).detach()
    h = torch.tanh(e.flip(0))
    got = _part(looped, "next_state", h.clone(), e.clone())
    if fault := difference(got, reference.next_state(h, e).detach(), 1e-4):
        A, B = reference.lti()
        x = A * h + F.linear(e, B)
        suspects = {
            "only the first block of the core runs": torch.tanh(reference.run(model.core[:1], x)),
            "h and e have changed places": reference.next_state(e, h),
            "the state itself is injected in place of e": reference.next_state(h, h),
            "the core is missing": torch.tanh(x),
            "it runs the prelude in place of the core": torch.tanh(reference.run(model.prelude, x)),
            "B̄ is Δ·B, which self.lti() gives; this is B alone": torch.tanh(
                reference.run(model.core, A * h + F.linear(e, model.injection.b))
            ),
        }
        return _closest(got, suspects) or fault
    return None


def _fault_in_read_out(answer: Callable) -> str | None:
    model = _small_model()
    looped, reference = answer(model), LoopedTransformer(model)
    h = torch.tanh(reference.encode(_ids()).detach())
    got = _part(looped, "read_out", h.clone())
    if fault := difference(got, reference.read_out(h).detach(), 1e-4):
        head, out = model.embedding.weight, reference.run(model.coda, h)
        suspects = {
            "the coda is missing": F.linear(model.norm(h), head),
            "the last norm, self.model.norm, is missing": F.linear(out, head),
            "the norm stands before the coda; it belongs behind it": F.linear(
                reference.run(model.coda, model.norm(h)), head
            ),
            "only the first block of the coda runs": F.linear(model.norm(reference.run(model.coda[:1], h)), head),
            "logits are asked for, not probabilities: no softmax": reference.read_out(h).softmax(dim=-1),
            "the head is missing: a product with the embedding's matrix, (V, D)": model.norm(out),
        }
        return _closest(got, suspects) or fault
    return None


def _fault_in_loop(answer: Callable) -> str | None:
    model, ids = _small_model(), _ids()
    looped, reference = answer(model), LoopedTransformer(model)
    for n_loops in (1, 2, 5):
        got, wanted = as_answer(looped(ids, n_loops)), reference(ids, n_loops).detach()
        if fault := difference(got, wanted, 1e-4):
            e = reference.encode(ids)
            h = torch.zeros_like(e)
            own = again = e
            for _ in range(n_loops):
                h, own = reference.next_state(h, e), reference.next_state(own, own)
                again = reference.run(model.coda, reference.next_state(again, e))
            suspects = {
                "it runs one loop too many": reference(ids, n_loops + 1),
                "it runs one loop too few": reference(ids, n_loops - 1),
                "it starts at zero; here h₀ = e": reference.read_out(h),
                "what it injects is the state, not e, which stays the same in all loops": reference.read_out(own),
                "the coda runs in every loop; it runs once, after the last": F.linear(
                    model.norm(again), model.embedding.weight
                ),
                "no loop runs: what is read out is e": reference.read_out(e),
            }
            return f"with {n_loops} loops: {_closest(got, suspects) or fault}"
    return _fault_in_use(answer)


def _fault_in_use(answer: Callable) -> str | None:
    """Whether ``forward`` calls the other methods, two of them once: later cells replace or count on them."""
    raw = getattr(answer, "raw", answer)
    if not isinstance(raw, type):
        return None
    model, ids, calls = _small_model(), _ids(), []

    class Counts(raw):
        def encode(self, token_ids: Tensor) -> Tensor:
            calls.append("encode")
            return super().encode(token_ids)

        def read_out(self, h: Tensor) -> Tensor:
            calls.append("read_out")
            return super().read_out(h)

    Counts(model)(ids, 3)
    for name in ("encode", "read_out"):
        if name not in calls:
            return f"forward does not call self.{name}; let it use what you have written"
    if calls.count("encode") > 1:
        return "forward encodes in every loop; e is computed once, before the first"
    if calls.count("read_out") > 1:
        return "forward reads out more than once; it does so after the last loop"

    class StandsStill(raw):
        def next_state(self, h: Tensor, e: Tensor) -> Tensor:
            return h

    reference = LoopedTransformer(model)
    if same(as_answer(StandsStill(model)(ids, 3)), reference.read_out(reference.encode(ids)).detach(), 1e-4):
        return None
    return "forward does not call self.next_state; a later cell replaces that method and needs to be heard"


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    """The gradient of a loss by each parameter, by name."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def _fault_in_loop_gradient(answer: Callable) -> str | None:
    model, ids = _small_model(), _ids()
    looped = answer(model)
    out = looped(ids, 3)
    if not isinstance(out, Tensor) or not out.requires_grad:
        return "its logits carry no gradient: no .detach(), no torch.no_grad inside"
    got = _gradients(model, out.pow(2).mean())
    try:
        _gradients(model, looped(ids, 3).pow(2).mean())
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        return "a second way back fails: something, perhaps Ā and B̄, is computed once and kept; training changes it"
    wanted = _gradients(model, LoopedTransformer(model)(ids, 3).pow(2).mean())
    if missing := [name for name in wanted if got[name] is None]:
        return f"no gradient reaches {missing[0]}"
    if _gradients_agree(got, wanted):
        return None
    if _gradients_agree(got, _gradients(model, _detached(LoopedTransformer(model), ids, 3).pow(2).mean())):
        return "the state is cut off from loop to loop, so only the last loop learns"
    worst = max(wanted, key=lambda name: (got[name] - wanted[name]).abs().max().item())
    return f"the gradient of {worst} is off by up to {(got[worst] - wanted[worst]).abs().max().item():.2g}"


def _detached(looped: LoopedTransformer, token_ids: Tensor, n_loops: int) -> Tensor:
    """Logits whose gradient goes back through the last loop only."""
    h = e = looped.encode(token_ids)
    for _ in range(n_loops):
        h = looped.next_state(h.detach(), e)
    return looped.read_out(h)


# ---------------------------------------------------------------- 3.3


def additive_step(h: Tensor, e: Tensor, core: Callable, norm: Callable, A: Tensor, b: Tensor) -> Tensor:
    """State and input (B, T, D), two functions, A and b (D,) → next state (B, T, D)."""
    return torch.tanh(A * h + b * e + core(norm(h + e)))


def _additive_cases() -> list[tuple]:
    def norm(x):
        return x / x.pow(2).mean(dim=-1, keepdim=True).sqrt()

    return [(h, e, core, norm, A, B[0]) for h, e, core, A, B in _step_cases()]


def _fault_in_additive_step(answer: Callable) -> str | None:
    cases = _additive_cases()
    suspects = {
        "the tanh over the sum is missing": lambda h, e, core, norm, A, b: A * h + b * e + core(norm(h + e)),
        "the tanh is over the core alone; it belongs over the whole sum": lambda h, e, core, norm, A, b: (
            A * h + b * e + torch.tanh(core(norm(h + e)))
        ),
        "the core sees h alone; it must see h + e": lambda h, e, core, norm, A, b: torch.tanh(
            A * h + b * e + core(norm(h))
        ),
        "the norm is missing before the core": lambda h, e, core, norm, A, b: torch.tanh(A * h + b * e + core(h + e)),
        "the input is not injected: b ⊙ e is missing": lambda h, e, core, norm, A, b: torch.tanh(
            A * h + core(norm(h + e))
        ),
        "the decay of h is missing": lambda h, e, core, norm, A, b: torch.tanh(h + b * e + core(norm(h + e))),
        "the core stands behind the linear system, as in lti; here it stands beside it": lambda h, e, core, norm, A, b: (  # noqa: E501
            torch.tanh(core(norm(A * h + b * e)))
        ),
    }
    answers = []
    for case in cases:
        got, changed = _on_clones(answer, case)
        if changed:
            return changed
        answers.append(got)
    for case, got in zip(cases, answers, strict=True):
        if fault := difference(got, additive_step(*case)):
            hint = fitting_hint(suspects, cases, answers)
            return hint or f"for states of shape {tuple(case[0].shape)}: {fault}"
    return None


def _fault_in_additive_gradient(answer: Callable) -> str | None:
    return gradient_fault(answer, additive_step, *_additive_cases()[1])


# ---------------------------------------------------------------- 3.4


def linear_gradients(a: float, b: float, n: int) -> tuple[float, float]:
    """(∂h_n/∂h_0, ∂h_n/∂e) of the loop h ← a·h + b·e."""
    return a**n, b * sum(a**k for k in range(n))


def _fault_in_linear_gradients(answer: Callable) -> str | None:
    for a, b, n in ((0.5, 2.0, 1), (0.5, 2.0, 3), (0.9, 0.1, 64), (1.0, 0.5, 8), (-0.5, 1.0, 4), (1.1, 1.0, 5)):
        got = answer(a, b, n)
        if not isinstance(got, Tensor) or got.numel() != 2:
            return f"it is {got!r}, and two numbers are asked for: the derivatives after h_0 and after e"
        got = got.flatten().tolist()
        start, source = linear_gradients(a, b, n)
        where = f"for a={a:g}, b={b:g}, n={n}"
        if same(got[1], source + start) and not same(got[1], source):
            return f"{where}, ∂h_n/∂e: h₀ and e are two things; aⁿ belongs to the start alone"
        if fault := difference(got[0], start):
            if same(got[0], n * a):
                return f"{where}, ∂h_n/∂h_0: {fault}; factors multiply from loop to loop, they do not add"
            if same(got[0], source) and same(got[1], start):
                return f"{where}: the two derivatives have changed places"
            return f"{where}, ∂h_n/∂h_0: {fault}"
        if fault := difference(got[1], source):
            if a == 1.0 and not math.isfinite(got[1]):
                return f"{where}, ∂h_n/∂e: {fault}; at a = 1 the closed form of the sum divides by zero"
            if same(got[1], a * source):
                return f"{where}, ∂h_n/∂e: {fault}; the e that came in last has not decayed yet: the sum begins at a^0"
            if same(got[1], b):
                return f"{where}, ∂h_n/∂e: {fault}; e comes in at every loop, not only at the last"
            if same(got[1], b * n):
                return f"{where}, ∂h_n/∂e: {fault}; what came in earlier has decayed since, by a at every loop"
            if same(got[1], source + b * a**n):
                return f"{where}, ∂h_n/∂e: {fault}; the sum has one term too many, it ends at a^(n−1)"
            return f"{where}, ∂h_n/∂e: {fault}"
    return None


# ---------------------------------------------------------------- 3.5


def flops(config: ModelConfig, length: int, n_loops: int) -> int:
    """Floating-point operations of one forward pass over a sequence of ``length`` tokens, without a window."""
    D, kv = config.d_model, config.n_kv_heads * config.head_dim
    # One block: query and output, key and value, the three matrices of the feed-forward …
    matrices = 2 * D * D + 2 * D * kv + 3 * D * config.d_ff
    # … two operations per weight and token, then scores and mixture for all pairs of positions.
    block = 2 * matrices * length + 4 * length**2 * D
    # Prelude and coda run once, core and injection in every loop, the head once.
    n_blocks = config.n_prelude_layers + n_loops * config.n_core_layers + config.n_coda_layers
    injections = n_loops * 2 * D * D * length
    head = 2 * D * config.vocab_size * length
    return n_blocks * block + injections + head


def _flops_with(
    *, per_weight: int = 2, kv: bool = True, pairs: Callable = lambda T: 4 * T**2, ff: int = 3, loops: str = "core",
    injections: str = "n", head: int = 2,
) -> Callable:  # fmt: skip
    """``flops`` with one thing changed; ``pairs`` gives attention's own products of a block, over D."""

    def rule(config: ModelConfig, length: int, n: int) -> float:
        D, V = config.d_model, config.vocab_size
        width = config.n_kv_heads * config.head_dim if kv else D
        block = (
            per_weight * (2 * D * D + 2 * D * width + ff * D * config.d_ff) * length
            + pairs(length) * D
        )  # fmt: skip
        outer, core = config.n_prelude_layers + config.n_coda_layers, config.n_core_layers
        n_blocks = {
            "core": outer + n * core, "all": n * (outer + core), "once": outer + core, "alone": n * core,
            "one block": outer + n,
        }[loops]  # fmt: skip
        times = {"n": n, "1": 1, "0": 0}[injections]
        return n_blocks * block + times * per_weight * D * D * length + head * D * V * length

    return rule


def _fault_in_flops(answer: Callable) -> str | None:
    small = {"d_model": 8, "n_heads": 4, "d_ff": 12, "window": None}
    cases = [
        (ModelConfig(window=None), 64, 8),
        (ModelConfig(**small, n_kv_heads=2, n_prelude_layers=2, n_core_layers=3, n_coda_layers=1), 5, 3),
        (ModelConfig(**small, n_kv_heads=1, n_coda_layers=0), 1, 1),
    ]
    suspects = {
        "a weight costs two operations per token, a multiplication and an addition": _flops_with(per_weight=1, head=1),
        "each product counts twice, here and in attention: a multiplication and an addition are two operations": (
            _flops_with(per_weight=1, head=1, pairs=lambda T: 2 * T**2)
        ),
        "keys and values are as narrow as n_kv_heads · head_dim": _flops_with(kv=False),
        "attention's own products are missing: every pair of positions costs 2·D for the score and 2·D for the mixture": (  # noqa: E501
            _flops_with(pairs=lambda T: 0)
        ),
        "attention has two products, scores and mixture, of 2·D per pair each": _flops_with(pairs=lambda T: 2 * T**2),
        "every position meets every position: attention's own products are T² pairs, not T": _flops_with(
            pairs=lambda T: 4 * T
        ),
        "masked pairs count too, all T²": _flops_with(pairs=lambda T: 2 * T * (T + 1)),
        "half of the pairs are left out; masked pairs count too, all T²": _flops_with(
            per_weight=2, pairs=lambda T: 2 * T * (T - 1)
        ),
        "the feed-forward has three matrices of D · d_ff": _flops_with(ff=2),
        "the core has n_core_layers blocks, and all of them run in every loop": _flops_with(loops="one block"),
        "prelude and coda run once; only the core is repeated": _flops_with(loops="all"),
        "the core runs n_loops times": _flops_with(loops="once"),
        "prelude and coda are missing": _flops_with(loops="alone"),
        "the injection B̄ e is computed in every loop": _flops_with(injections="1"),
        "the injection is missing: B̄ e costs 2·D² per token and loop": _flops_with(injections="0"),
        "the head is missing: 2·D·V per token": _flops_with(head=0),
    }
    answers = [answer(*case) for case in cases]
    for (config, length, n_loops), got in zip(cases, answers, strict=True):
        if not is_number(got):
            return f"it is {got!r}, and a number is asked for"
        got = float(got)
        wanted = flops(config, length, n_loops)
        if abs(got - wanted) > 1e-6 * wanted:
            hint = fitting_hint(suspects, cases, answers)
            return hint or f"for length={length}, n_loops={n_loops}: it is {got:,.0f} and should be {wanted:,}"
    return None


# ---------------------------------------------------------------- 3.6


def truncated_loss(looped: LoopedTransformer, batch: Batch, n_loops: int, k: int) -> Tensor:
    """The answers' mean cross-entropy after ``n_loops`` loops, whose gradient goes back through the last k alone."""
    e = looped.encode(batch.token_ids)
    h = e
    # The first loops compute values and leave nothing behind for the way back.
    with torch.no_grad():
        for _ in range(max(n_loops - k, 0)):
            h = looped.next_state(h, e)
    # The last k are recorded. The same e comes in, so the prelude learns as well.
    for _ in range(min(k, n_loops)):
        h = looped.next_state(h, e)
    # Each chain's logits where its EQ stands.
    logits = looped.read_out(h)[torch.arange(len(h)), batch.answer_positions]
    return F.cross_entropy(logits, batch.answers)


@functools.cache
def _small_batch() -> Batch:
    """Chains of two lengths, padded, so that EQ does not always stand last."""
    task, generator = ChainTask(), make_generator(5)
    long = task.encode(task.sample(2, 5, generator, "train"))
    short = task.encode(task.sample(2, 3, generator, "train"))
    padded = F.pad(short.token_ids, (0, 2), value=task.pad_id)
    parts = zip(long, short._replace(token_ids=padded), strict=True)
    return Batch(*(torch.cat(pair) for pair in parts))


def _loss_of(looped: LoopedTransformer, h: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(looped.read_out(h)[torch.arange(len(h)), batch.answer_positions], batch.answers)


def _fault_in_truncated_values(answer: Callable) -> str | None:
    looped, batch = LoopedTransformer(_small_model()), _small_batch()
    for n_loops, k in ((5, 2), (3, 3), (2, 3), (4, 1)):
        got, wanted = answer(looped, batch, n_loops, k), truncated_loss(looped, batch, n_loops, k).item()
        if fault := difference(got, wanted, 1e-4):
            where = f"for n_loops={n_loops}, k={k}: {fault}"
            with torch.no_grad():
                last = F.cross_entropy(looped(batch.token_ids, n_loops)[:, -1], batch.answers).item()
            if same(got, last, 1e-4):
                return f"{where}; the answer is read at batch.answer_positions, which is not always the last position"
            if same(got, len(batch.answers) * wanted, 1e-4):
                return f"{where}; the mean over the chains is asked for, not the sum"
            alone = "runs k loops alone" if k < n_loops else "runs k loops even where n_loops are fewer"
            for loops, said in ((k, alone), (n_loops + k, "runs k loops more than n_loops")):
                if loops != n_loops and same(got, truncated_loss(looped, batch, loops, loops).item(), 1e-4):
                    return f"{where}; it {said}; truncation leaves the value as it is"
            return where
    return None


def _truncated(recorded: Callable[[int, int], list[bool]], *, through_e: bool = True, start: bool = True) -> Callable:
    """A loss whose gradient goes through the loops that ``recorded`` names, and through e and h₀ or not."""

    def rule(looped: LoopedTransformer, batch: Batch, n_loops: int, k: int) -> Tensor:
        e = looped.encode(batch.token_ids)
        h = e if start else e.detach()
        e = e if through_e else e.detach()
        for kept in recorded(n_loops, k):
            with torch.set_grad_enabled(kept):
                h = looped.next_state(h, e)
        return _loss_of(looped, h, batch)

    return rule


def _fault_in_truncated_gradient(answer: Callable) -> str | None:
    looped, batch = LoopedTransformer(_small_model()), _small_batch()

    def last(n: int, k: int) -> list[bool]:
        return [t >= n - k for t in range(n)]

    suspects = {
        "it goes back through all loops": _truncated(lambda n, k: [True] * n),
        "it goes back through one loop more than k": _truncated(lambda n, k: last(n, k + 1)),
        "it goes back through one loop less than k": _truncated(lambda n, k: last(n, k - 1)),
        "it goes back through no loop at all": _truncated(lambda n, k: [False] * n),
        "the last k loops are to be recorded, not the first": _truncated(lambda n, k: [t < k for t in range(n)]),
        "it cuts after the first k loops; the cut belongs after the first n_loops − k": _truncated(
            lambda n, k: [t >= k or n < k for t in range(n)]
        ),
        "where k is n_loops or more nothing is cut off: the start h₀ = e is recorded too": _truncated(
            last, start=False
        ),
        "e is cut off: the prelude and the embedding learn through e in the last k loops": _truncated(
            last, through_e=False
        ),
        "e is cut off, and h₀ with it: the prelude and the embedding learn through e": _truncated(
            last, through_e=False, start=False
        ),
    }
    cases = [(6, 3), (5, 2), (4, 1), (3, 3), (2, 3)]
    found = []
    for case in cases:
        loss = answer.raw(looped, batch, *case)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            return "the loss carries no gradient: it must be a tensor, and the last k loops and the read-out recorded"
        found.append(_gradients(looped, loss))
    wanted = [_gradients(looped, truncated_loss(looped, batch, *case)) for case in cases]
    agree = [_gradients_agree(*pair) for pair in zip(found, wanted, strict=True)]
    if all(agree):
        return None
    for hint, rule in suspects.items():
        others = [_gradients(looped, rule(looped, batch, *case)) for case in cases]
        if all(_gradients_agree(*pair) for pair in zip(found, others, strict=True)):
            return hint
    n_loops, k = cases[agree.index(False)]
    return (
        f"for n_loops={n_loops}, k={k} the gradient differs from that through the last {min(k, n_loops)} loops; "
        "the value is right"
    )


def _gradients_agree(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> bool:
    """Whether two gradients are the same for every parameter, none counting as zero."""
    for name, gradient in other.items():
        mine = one[name]
        if mine is None and gradient is None:
            continue
        mine = torch.zeros_like(gradient) if mine is None else mine
        gradient = torch.zeros_like(mine) if gradient is None else gradient
        if (mine - gradient).abs().max() > 1e-4 * (1e-3 + gradient.abs().max()):
            return False
    return True


# ---------------------------------------------------------------- 3.7


def split_gradients(looped: LoopedTransformer, batch: Batch, n_loops: int) -> tuple[float, float, float]:
    """Norms of the loss's gradient by the start h₀, by the e that is injected, and by the core's weights."""
    # Start and input hold the same numbers. As two leaves of autograd's graph, each gets a gradient of its own.
    start = looped.encode(batch.token_ids).detach().requires_grad_()
    e = start.detach().clone().requires_grad_()
    # The loop and the loss, as always.
    h = start
    for _ in range(n_loops):
        h = looped.next_state(h, e)
    logits = looped.read_out(h)[torch.arange(len(h)), batch.answer_positions]
    loss = F.cross_entropy(logits, batch.answers)
    # One way back for all of them. The weights' gradient is one long vector that lies in several tensors.
    by_start, by_input, *by_weights = torch.autograd.grad(loss, [start, e, *looped.model.core.parameters()])
    norm = torch.cat([gradient.flatten() for gradient in by_weights]).norm()
    return by_start.norm().item(), by_input.norm().item(), norm.item()


def _parts_of_split(n_loops: int) -> dict[str, float]:
    """Right and wrong norms, by what they are."""
    looped, batch = LoopedTransformer(_small_model()), _small_batch()
    names = dict(looped.model.named_parameters())
    both = looped.encode(batch.token_ids).detach().requires_grad_()
    states = [both]
    for _ in range(n_loops):
        states.append(looped.next_state(states[-1], both))
    loss = _loss_of(looped, states[-1], batch)
    whole, last, *weights = torch.autograd.grad(loss, [both, states[-1], *names.values()], allow_unused=True)
    by_name = {name: gradient for name, gradient in zip(names, weights, strict=True) if gradient is not None}
    core = [gradient for name, gradient in by_name.items() if name.startswith("core.")]
    start, source, right = split_gradients(looped, batch, n_loops)
    return {
        "start": start, "input": source, "weights": right, "both": whole.norm().item(), "last": last.norm().item(),
        "sum of norms": sum(gradient.norm().item() for gradient in core), "squared": right**2,
        "all weights": math.sqrt(sum(gradient.pow(2).sum().item() for gradient in by_name.values())),
    }  # fmt: skip


def _split(answer: Callable, n_loops: int, *, again: bool = False) -> list[float] | str:
    """The three norms; unless ``again``, without what an earlier ``backward()`` has left in the weights' .grad."""
    looped = LoopedTransformer(_small_model())
    if not again:
        looped.zero_grad()
    got = answer(looped, _small_batch(), n_loops)
    if not isinstance(got, Tensor) or got.numel() != 3:
        return "three numbers are asked for: the norms of the gradients by start, input and weights"
    return got.flatten().tolist()


def _near(got: float, wanted: float) -> bool:
    return abs(got - wanted) <= 1e-3 * abs(wanted)


def _fault_in_split_shape(answer: Callable) -> str | None:
    got = _split(answer, 2)
    if isinstance(got, str):
        return got
    return None if all(map(math.isfinite, got)) else "they are not all finite numbers"


def _fault_in_split_states(answer: Callable) -> str | None:
    for n_loops in (1, 4):
        got, parts = _split(answer, n_loops), _parts_of_split(n_loops)
        start, source = got[0], got[1]
        where = f"with {n_loops} loop{'s' if n_loops > 1 else ''}"
        if _near(start, parts["start"]) and _near(source, parts["input"]):
            continue
        if _near(start, parts["input"]) and _near(source, parts["start"]):
            return f"{where}: start and input have changed places"
        if _near(start, parts["both"]) or _near(source, parts["both"]):
            return f"{where}: start and input are one tensor, so their gradients are added; make them two leaves"
        if _near(start, parts["last"]):
            return f"{where}: that is the gradient by the last state; the start is h₀"
        for name, value, wanted in (("start", start, parts["start"]), ("input", source, parts["input"])):
            if _near(value, wanted**2):
                return f"{where}: the norm by the {name} is asked for, and this is its square"
            if not _near(value, wanted):
                return (
                    f"{where}: the gradient by the {name} has norm {value:.3g} and should have {wanted:.3g}; "
                    "is the loss the mean over the chains, at batch.answer_positions?"
                )
    return None


def _fault_in_split_weights(answer: Callable) -> str | None:
    hints = {
        "sum of norms": "norms of several tensors do not add: square, add, then take the root",
        "squared": "the square root is missing",
        "all weights": "that is the gradient of all weights; the core's are asked for",
    }
    for n_loops in (2, 4):
        got, parts = _split(answer, n_loops)[2], _parts_of_split(n_loops)
        if not _near(got, parts["weights"]):
            hint = next((said for name, said in hints.items() if _near(got, parts[name])), "")
            where = f"with {n_loops} loops the norm is {got:.3g} and should be {parts['weights']:.3g}"
            return f"{where}; {hint}" if hint else where
        if not _near(_split(answer, n_loops, again=True)[2], got):
            return "called twice it differs: gradients of earlier calls are added in .grad; use torch.autograd.grad"
    return None


EXERCISES = (
    Exercise(
        number="3.1", title="one step of the loop", minutes=10, difficulty=2,
        stages={"shape": _fault_in_step_shape, "values": _fault_in_step_values, "gradient": _fault_in_step_gradient},
        solution=step,
    ),
    Exercise(
        number="3.2", title="the whole transformer", minutes=15, difficulty=2,
        stages={
            "encode": _fault_in_encode, "next_state": _fault_in_next_state, "read_out": _fault_in_read_out,
            "forward": _fault_in_loop, "gradient": _fault_in_loop_gradient,
        },
        solution=LoopedTransformer,
    ),
    Exercise(
        number="3.3", title="the other injection", minutes=5, difficulty=1,
        stages={"values": _fault_in_additive_step, "gradient": _fault_in_additive_gradient}, solution=additive_step,
    ),
    Exercise(
        number="3.4", title="gradients of a linear loop", minutes=5, difficulty=1,
        stages={"values": _fault_in_linear_gradients}, solution=linear_gradients,
    ),
    Exercise(
        number="3.5", title="count the operations", minutes=10, difficulty=2,
        stages={"values": _fault_in_flops}, solution=flops,
    ),
    Exercise(
        number="3.6", title="back through the last loops only", minutes=10, difficulty=2,
        stages={"values": _fault_in_truncated_values, "gradient": _fault_in_truncated_gradient},
        solution=truncated_loss,
    ),
    Exercise(
        number="3.7", title="three gradients", minutes=30, difficulty=3,
        stages={
            "shape": _fault_in_split_shape, "start and input": _fault_in_split_states,
            "weights": _fault_in_split_weights,
        },
        solution=split_gradients,
    ),
)  # fmt: skip
