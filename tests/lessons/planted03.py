"""Lesson 3: answers that its checks must reject, with a word of what they must say, and others they must accept."""

from fractions import Fraction

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mythos_lite.config import ModelConfig
from mythos_lite.lessons.lesson03 import LoopedTransformer, flops, split_gradients, step, truncated_loss


def _step_in_place(h, e, core, A, B):
    h *= A
    h += F.linear(e, B)
    return torch.tanh(core(h))


def _additive_in_place(h, e, core, norm, A, b):
    x = core(norm(h + e))
    h *= A
    return torch.tanh(h + b * e + x)


class _InOneGo(nn.Module):
    """Right, in another style: the package's own methods, and a loop that counts down."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def encode(self, token_ids):
        return self.model.encode(token_ids, self.model._context(token_ids, None))

    def next_state(self, h, e):
        injection = self.model.injection
        x = h * injection.decay() + e @ (F.softplus(injection.delta)[:, None] * injection.b).mT
        for block in self.model.core:
            x = block(x, self.model._context(x[..., 0], None)._replace(counted=None))[0]
        return x.tanh()

    def read_out(self, h):
        return self.model.read_out(h)

    def forward(self, token_ids, n_loops):
        e = h = self.encode(token_ids)
        while n_loops > 0:
            h, n_loops = self.next_state(h, e), n_loops - 1
        return self.read_out(h)


class _ByRecursion(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        e = self.encode(token_ids)

        def state(t):
            return self.next_state(state(t - 1), e) if t else e

        return self.read_out(state(n_loops))


class _NoPrelude(LoopedTransformer):
    def encode(self, token_ids):
        return self.model.embedding(token_ids)


class _OneBlockOfPrelude(LoopedTransformer):
    def encode(self, token_ids):
        return self.run(self.model.prelude[:1], self.model.embedding(token_ids))


class _ModelUnderAnotherName(LoopedTransformer):
    def __init__(self, model):
        nn.Module.__init__(self)
        self.parts = model


class _Plain:
    def __init__(self, model):
        self.model = model


class _HiddenModel(LoopedTransformer):
    """Keeps the model where nn.Module does not register it."""

    def __init__(self, model):
        nn.Module.__init__(self)
        self.__dict__["model"] = model


class _CalledPrelude(LoopedTransformer):
    def encode(self, token_ids):
        return self.model.prelude(self.model.embedding(token_ids))


class _ListAsCore(LoopedTransformer):
    def next_state(self, h, e):
        return step(h, e, self.model.core, *self.lti())


class _EncodesEveryTime(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        h = self.encode(token_ids)
        for _ in range(n_loops):
            h = self.next_state(h, self.encode(token_ids))
        return self.read_out(h)


class _ReadOutWrittenOut(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        h = e = self.encode(token_ids)
        for _ in range(n_loops):
            h = self.next_state(h, e)
        return F.linear(self.model.norm(self.run(self.model.coda, h)), self.model.embedding.weight)


class _ReadsOutInTheLoop(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        h = e = self.encode(token_ids)
        for _ in range(n_loops):
            h = self.next_state(h, e)
            logits = self.read_out(h)
        return logits


class _OnceAndForAll(LoopedTransformer):
    def __init__(self, model):
        super().__init__(model)
        self.kept = self.lti()

    def next_state(self, h, e):
        return step(h, e, lambda x: self.run(self.model.core, x), *self.kept)


class _OneBlockOfCore(LoopedTransformer):
    def next_state(self, h, e):
        return step(h, e, lambda x: self.run(self.model.core[:1], x), *self.lti())


class _Swapped(LoopedTransformer):
    def next_state(self, h, e):
        return super().next_state(e, h)


class _WithoutDelta(LoopedTransformer):
    def next_state(self, h, e):
        core = lambda x: self.run(self.model.core, x)  # noqa: E731
        return step(h, e, core, self.model.injection.decay(), self.model.injection.b)


class _NoLastNorm(LoopedTransformer):
    def read_out(self, h):
        return F.linear(self.run(self.model.coda, h), self.model.embedding.weight)


class _NormFirst(LoopedTransformer):
    def read_out(self, h):
        return F.linear(self.run(self.model.coda, self.model.norm(h)), self.model.embedding.weight)


class _NoCoda(LoopedTransformer):
    def read_out(self, h):
        return F.linear(self.model.norm(h), self.model.embedding.weight)


class _NoHead(LoopedTransformer):
    def read_out(self, h):
        return self.model.norm(self.run(self.model.coda, h))


class _Probabilities(LoopedTransformer):
    def read_out(self, h):
        return super().read_out(h).softmax(-1)


class _OneTooMany(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        return super().forward(token_ids, n_loops + 1)


class _FromZero(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        e = self.encode(token_ids)
        h = torch.zeros_like(e)
        for _ in range(n_loops):
            h = self.next_state(h, e)
        return self.read_out(h)


class _InjectsItself(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        h = self.encode(token_ids)
        for _ in range(n_loops):
            h = self.next_state(h, h)
        return self.read_out(h)


class _CodaInTheLoop(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        h = e = self.encode(token_ids)
        for _ in range(n_loops):
            h = self.run(self.model.coda, self.next_state(h, e))
        return F.linear(self.model.norm(h), self.model.embedding.weight)


class _Detached(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        h = e = self.encode(token_ids)
        for _ in range(n_loops):
            h = self.next_state(h.detach(), e)
        return self.read_out(h)


class _NoGradient(LoopedTransformer):
    @torch.no_grad()
    def forward(self, token_ids, n_loops):
        return super().forward(token_ids, n_loops)


class _FrozenInput(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        h = e = self.encode(token_ids).detach()
        for _ in range(n_loops):
            h = self.next_state(h, e)
        return self.read_out(h)


class _StepWrittenOut(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        h = e = self.encode(token_ids)
        for _ in range(n_loops):
            h = step(h, e, lambda x: self.run(self.model.core, x), *self.lti())
        return self.read_out(h)


class _FiveLoopsAlways(LoopedTransformer):
    def forward(self, token_ids, n_loops):
        return super().forward(token_ids, 5)


def _gradients_by_stepping(a, b, n):
    start, source = 1.0, 0.0
    for _ in range(n):
        start, source = a * start, a * source + b
    return [start, source]


def _flops_by_lists(config, length, n_loops):
    D, K = config.d_model, config.n_kv_heads * config.d_model // config.n_heads
    shapes = [(D, D), (D, D), (D, K), (D, K), (D, config.d_ff), (D, config.d_ff), (config.d_ff, D)]
    block = sum(2 * length * rows * columns for rows, columns in shapes) + 2 * (2 * length * length * D)
    core = config.n_core_layers * block + 2 * length * D * D
    outer = (config.n_prelude_layers + config.n_coda_layers) * block + 2 * length * D * config.vocab_size
    return np.float64(outer + n_loops * core)


def _changed_flops(change):
    def rule(config, length, n_loops):
        D = config.d_model
        kv = config.n_kv_heads * config.head_dim
        matrices = 2 * D * D + 2 * D * kv + 3 * D * config.d_ff
        return change(
            D=D, matrices=matrices, T=length, n=n_loops, V=config.vocab_size, config=config,
            right=flops(config, length, n_loops), blocks=config.n_prelude_layers + config.n_coda_layers
            + n_loops * config.n_core_layers,
        )  # fmt: skip

    return rule


def _loss(looped, h, batch):
    return F.cross_entropy(looped.read_out(h)[torch.arange(len(h)), batch.answer_positions], batch.answers)


def _loss_with(recorded, *, cut_e=False, cut_start=False):
    """A loss whose gradient goes through the loops for which ``recorded(t, n, k)`` is true."""

    def rule(looped, batch, n_loops, k):
        h = e = looped.encode(batch.token_ids)
        h = h.detach() if cut_start else h
        e = e.detach() if cut_e else e
        for t in range(n_loops):
            if recorded(t, n_loops, k):
                h = looped.next_state(h, e)
            else:
                with torch.no_grad():
                    h = looped.next_state(h, e)
        return _loss(looped, h, batch)

    return rule


def _cut_after_the_first_k(looped, batch, n_loops, k):
    h = e = looped.encode(batch.token_ids)
    for t in range(n_loops):
        h = looped.next_state(h, e)
        if t == k - 1:
            h = h.detach()
    return _loss(looped, h, batch)


def _always_k_at_the_end(looped, batch, n_loops, k):
    h = e = looped.encode(batch.token_ids)
    with torch.no_grad():
        for _ in range(n_loops - k):
            h = looped.next_state(h, e)
    for _ in range(k):
        h = looped.next_state(h, e)
    return _loss(looped, h, batch)


def _start_always_cut(looped, batch, n_loops, k):
    h = e = looped.encode(batch.token_ids)
    with torch.no_grad():
        for _ in range(max(n_loops - k, 0)):
            h = looped.next_state(h, e)
    h = h.detach()
    for _ in range(min(k, n_loops)):
        h = looped.next_state(h, e)
    return _loss(looped, h, batch)


def _truncated_by_detaching(looped, batch, n_loops, k):
    h = e = looped.encode(batch.token_ids)
    for t in range(n_loops):
        h = looped.next_state(h, e)
        if t == n_loops - k - 1:
            h = h.detach()
    nll = -looped.read_out(h).log_softmax(-1)[range(len(h)), batch.answer_positions, batch.answers]
    return nll.mean()


def _loss_at_the_end(looped, batch, n_loops, k):
    return F.cross_entropy(looped(batch.token_ids, n_loops)[:, -1], batch.answers)


def _split_with(*, one_leaf=False, at=0, weights="core", norm=None, backward=False, position=None, zero=True):
    """``split_gradients`` with one thing changed."""

    def rule(looped, batch, n_loops):
        start = looped.encode(batch.token_ids).detach().requires_grad_()
        e = start if one_leaf else start.detach().clone().requires_grad_()
        states = [start]
        for _ in range(n_loops):
            states.append(looped.next_state(states[-1], e))
        where = batch.answer_positions if position is None else position
        loss = F.cross_entropy(looped.read_out(states[-1])[torch.arange(len(e)), where], batch.answers)
        owner = looped.model.core if weights == "core" else looped
        parameters = list(owner.parameters())
        if backward:
            for p in parameters:
                p.grad = None if zero else p.grad
            loss.backward()
            found = [states[at].grad, e.grad, *(p.grad for p in parameters)]
        else:
            found = torch.autograd.grad(loss, [states[at], e, *parameters], allow_unused=True)
            found = [g for g in found if g is not None]
        length = sum(g.pow(2).sum() for g in found[2:])
        return found[0].norm(), found[1].norm(), length.sqrt() if norm is None else norm(found[2:])

    return rule


WRONG = {
    "3.1": [
        (lambda h, e, core, A, B: h[0], "shape"),
        (lambda h, e, core, A, B: None, "shape ✗"),
        (_step_in_place, "changes its argument h in place"),
        (lambda h, e, core, A, B: torch.tanh(core(A * h + e @ B)), "wrong way round"),
        (lambda h, e, core, A, B: core(A * h + F.linear(e, B)), "tanh at the end"),
        (lambda h, e, core, A, B: core(torch.tanh(A * h + F.linear(e, B))), "behind it"),
        (lambda h, e, core, A, B: torch.tanh(core(A * h)), "not injected"),
        (lambda h, e, core, A, B: torch.tanh(core(h + F.linear(e, B))), "decay of the state"),
        (lambda h, e, core, A, B: torch.tanh(core(A * h + e)), "through the matrix"),
        (lambda h, e, core, A, B: torch.tanh(A * h + F.linear(e, B) + core(h)), "beside the injection"),
        (lambda h, e, core, A, B: torch.tanh((x := A * h + F.linear(e, B)) + core(x)), "residual is added twice"),
        (lambda h, e, core, A, B: torch.tanh(core(A * e + F.linear(h, B))), "changed places"),
        (lambda h, e, core, A, B: torch.tanh(A * h + F.linear(e, B)), "core is missing"),
        (lambda h, e, core, A, B: torch.tanh(h), "off by"),
        (lambda h, e, core, A, B: step(h, e, core, A, B).detach(), "carries no gradient"),
        (lambda h, e, core, A, B: step(h.detach(), e, core, A, B), "no gradient reaches h"),
        (lambda h, e, core, A, B: step(h, e, core, A, B).numpy(force=True), "gradient ✗"),
    ],
    "3.2": [
        (_Plain, "no nn.Module"),
        (_ModelUnderAnotherName, "self.model"),
        (_NoPrelude, "prelude is missing"),
        (_OneBlockOfPrelude, "first block of the prelude"),
        (_OneBlockOfCore, "first block of the core"),
        (_Swapped, "h and e have changed places"),
        (_WithoutDelta, "Δ·B"),
        (_NoLastNorm, "last norm"),
        (_NormFirst, "norm stands before the coda"),
        (_NoCoda, "coda is missing"),
        (_NoHead, "head is missing"),
        (_Probabilities, "no softmax"),
        (_OneTooMany, "one loop too many"),
        (_FromZero, "starts at zero"),
        (_InjectsItself, "what it injects is the state"),
        (_CodaInTheLoop, "coda runs in every loop"),
        (_FiveLoopsAlways, "with 1 loops: it is off by"),
        (_StepWrittenOut, "does not call self.next_state"),
        (_Detached, "only the last loop learns"),
        (_NoGradient, "carry no gradient"),
        (_FrozenInput, "no gradient reaches prelude"),
        (_HiddenModel, "parameters() is empty"),
        (_CalledPrelude, "encode ✗: it raised TypeError: model.prelude, model.core and model.coda are lists"),
        (_ListAsCore, "lambda x: self.run(self.model.core, x)"),
        (_EncodesEveryTime, "encodes in every loop"),
        (_ReadOutWrittenOut, "does not call self.read_out"),
        (_ReadsOutInTheLoop, "reads out more than once"),
        (_OnceAndForAll, "is computed once and kept"),
    ],
    "3.3": [
        (lambda h, e, core, norm, A, b: A * h + b * e + core(norm(h + e)), "tanh over the sum"),
        (lambda h, e, core, norm, A, b: A * h + b * e + torch.tanh(core(norm(h + e))), "core alone"),
        (lambda h, e, core, norm, A, b: torch.tanh(A * h + b * e + core(norm(h))), "must see h + e"),
        (lambda h, e, core, norm, A, b: torch.tanh(A * h + b * e + core(h + e)), "norm is missing"),
        (lambda h, e, core, norm, A, b: torch.tanh(A * h + core(norm(h + e))), "not injected"),
        (lambda h, e, core, norm, A, b: torch.tanh(h + b * e + core(norm(h + e))), "decay"),
        (lambda h, e, core, norm, A, b: torch.tanh(core(norm(A * h + b * e))), "beside"),
        (lambda h, e, core, norm, A, b: torch.tanh(h), "off by"),
        (lambda h, e, core, norm, A, b: h[0], "shape"),
        (lambda h, e, core, norm, A, b: torch.tanh(A * h + b * e + core(norm(h + e)).detach()), "the gradient by h"),
        (lambda h, e, core, norm, A, b: torch.tanh(A * h + b * e + core(norm(h.detach() + e))), "the gradient by h"),
        (lambda h, e, core, norm, A, b: torch.tanh(A * h + b.detach() * e + core(norm(h + e))), "reaches b"),
        (
            lambda h, e, core, norm, A, b: np.tanh((A * h + b * e + core(norm(h + e))).numpy(force=True)),
            "carries no gradient",
        ),
        (_additive_in_place, "changes its argument h in place"),
    ],
    "3.4": [
        (lambda a, b, n: a**n, "two numbers"),
        (lambda a, b, n: (n * a, b * sum(a**k for k in range(n))), "multiply"),
        (lambda a, b, n: (b * sum(a**k for k in range(n)), a**n), "changed places"),
        (lambda a, b, n: (a**n, b), "every loop"),
        (lambda a, b, n: (a**n, b * n), "decayed"),
        (lambda a, b, n: (a**n, a**n + b * sum(a**k for k in range(n))), "belongs to the start alone"),
        (lambda a, b, n: [a**n + b * sum(a**k for k in range(n))] * 2, "belongs to the start alone"),
        (lambda a, b, n: (a**n, b * sum(a**k for k in range(n + 1))), "one term too many"),
        (lambda a, b, n: (a**n, b * (1 - a**n) / (1 - a)), "ZeroDivisionError"),
        (lambda a, b, n: (a ** (n - 1), b), "∂h_0"),
        (lambda a, b, n: torch.tensor([b * sum(a**k for k in range(n)), a**n]), "changed places"),
        (lambda a, b, n: (a**n, b * sum(a**k for k in range(1, n + 1))), "begins at a^0"),
        (lambda a, b, n: torch.stack([(t := torch.tensor(a)) ** n, b * (1 - t**n) / (1 - t)]), "closed form"),
        (lambda a, b, n: np.array([a**n, b, n]), "two numbers"),
        (lambda a, b, n: (a**n, None), "two numbers"),
    ],
    "3.5": [
        (lambda config, length, n_loops: None, "a number"),
        (lambda config, length, n_loops: 1, "should be"),
        (lambda config, length, n_loops: flops(config, length, n_loops) / 2, "a multiplication and an addition"),
        (lambda config, length, n_loops: flops(config, 1, n_loops) * length, "T² pairs"),
        (lambda config, length, n_loops: flops(config, length, n_loops) + 1e6, "should be"),
        (_changed_flops(lambda right, blocks, D, T, **_: right - blocks * 2 * T * (T - 1) * D), "masked pairs count"),
        (_changed_flops(lambda right, blocks, D, T, **_: right - blocks * 2 * T * (T + 1) * D), "masked pairs count"),
        (
            _changed_flops(lambda right, blocks, D, T, config, **_: right - blocks * 2 * T * D * config.d_ff),
            "three matrices",
        ),
        (
            lambda config, length, n_loops: flops(
                ModelConfig(**config.to_dict() | {"n_core_layers": 1}), length, n_loops
            ),
            "n_core_layers blocks",
        ),
        (_changed_flops(lambda right, blocks, D, T, **_: right - blocks * 4 * T * T * D), "attention's own products"),
        (_changed_flops(lambda right, blocks, D, T, **_: right - blocks * 2 * T * T * D), "two products"),
        (_changed_flops(lambda right, n, D, T, **_: right - n * 2 * D * D * T), "injection is missing"),
        (_changed_flops(lambda right, n, D, T, **_: right - (n - 1) * 2 * D * D * T), "in every loop"),
        (_changed_flops(lambda right, D, T, V, **_: right - 2 * D * T * V), "head is missing"),
        (
            _changed_flops(
                lambda right, blocks, matrices, D, T, V, n, **_: (
                    right - blocks * matrices * T - n * D * D * T - D * V * T
                )
            ),
            "multiplication and an addition",
        ),
        (
            lambda config, length, n_loops: flops(config, length, 1) * n_loops
            - (n_loops - 1) * 2 * config.d_model * config.vocab_size * length,
            "prelude and coda run once",
        ),
    ],
    "3.6": [
        (_loss_at_the_end, "answer_positions"),
        (lambda looped, batch, n_loops, k: truncated_loss(looped, batch, k, k), "k loops alone"),
        (lambda looped, batch, n_loops, k: truncated_loss(looped, batch, n_loops + k, k), "k loops more"),
        (lambda looped, batch, n_loops, k: 4 * truncated_loss(looped, batch, n_loops, k), "not the sum"),
        (lambda looped, batch, n_loops, k: truncated_loss(looped, batch, n_loops, k).item(), "no gradient"),
        (lambda looped, batch, n_loops, k: truncated_loss(looped, batch, n_loops, n_loops), "through all loops"),
        (lambda looped, batch, n_loops, k: truncated_loss(looped, batch, n_loops, k + 1), "one loop more than k"),
        (lambda looped, batch, n_loops, k: truncated_loss(looped, batch, n_loops, k - 1), "one loop less than k"),
        (lambda looped, batch, n_loops, k: truncated_loss(looped, batch, n_loops, 0), "no loop at all"),
        (_loss_with(lambda t, n, k: t < k), "not the first"),
        (_cut_after_the_first_k, "cuts after the first k loops"),
        (_always_k_at_the_end, "even where n_loops are fewer"),
        (_start_always_cut, "the start h₀ = e is recorded too"),
        (_loss_with(lambda t, n, k: t >= n - k - 2), "for n_loops=6, k=3 the gradient differs"),
        (_loss_with(lambda t, n, k: t >= n - k, cut_e=True), "e is cut off"),
        (_loss_with(lambda t, n, k: t >= n - k, cut_e=True, cut_start=True), "e is cut off, and h₀ with it"),
        (lambda looped, batch, n_loops, k: 0.5 * truncated_loss(looped, batch, n_loops, k), "should be"),
        (lambda looped, batch, n_loops, k: looped.encode(batch.token_ids), "a number is asked for"),
    ],
    "3.7": [
        (lambda looped, batch, n_loops: 1.0, "three numbers"),
        (lambda looped, batch, n_loops: (1.0, 2.0), "three numbers"),
        (lambda looped, batch, n_loops: [float("nan")] * 3, "not all finite"),
        (lambda looped, batch, n_loops: (1.0, 2.0, 3.0), "should have"),
        (_split_with(one_leaf=True), "one tensor"),
        (_split_with(at=-1), "last state"),
        (_split_with(position=-1), "answer_positions"),
        (lambda *inputs: (lambda s, e, w: (e, s, w))(*split_gradients(*inputs)), "changed places"),
        (lambda *inputs: (lambda s, e, w: (s**2, e, w))(*split_gradients(*inputs)), "its square"),
        (lambda *inputs: (lambda s, e, w: (s, e, w**2))(*split_gradients(*inputs)), "square root is missing"),
        (_split_with(norm=lambda found: sum(g.norm() for g in found)), "do not add"),
        (_split_with(norm=lambda found: found[0].norm()), "should be"),
        (_split_with(weights="all"), "gradient of all weights"),
        (_split_with(backward=True, zero=False), "use torch.autograd.grad"),
    ],
}  # fmt: skip
RIGHT = {
    "3.1": [
        lambda h, e, core, A, B: core(torch.mul(h, A).add(e @ B.T)).tanh(),
        lambda h, e, core, A, B: torch.tanh(core(torch.einsum("d,btd->btd", A, h) + torch.einsum("ij,btj->bti", B, e))),
        lambda h, e, core, A, B: torch.tanh(core((torch.diag(A) @ h.unsqueeze(-1) + B @ e.unsqueeze(-1)).squeeze(-1))),
    ],
    "3.2": [_InOneGo, _ByRecursion],
    "3.3": [
        lambda h, e, core, norm, A, b: (torch.mul(h, A).add(e * b) + core(norm(e + h))).tanh(),
        lambda h, e, core, norm, A, b: torch.stack([A * h, b * e, core(norm(e + h))]).sum(0).tanh(),
    ],
    "3.4": [
        _gradients_by_stepping,
        lambda a, b, n: torch.tensor(_gradients_by_stepping(a, b, n)),
        lambda a, b, n: np.array([a**n, b * np.sum(a ** np.arange(n))]),
        lambda a, b, n: (torch.tensor(a) ** n, b * (torch.tensor(a) ** torch.arange(n)).sum()),
        lambda a, b, n: (np.float64(a) ** n, torch.tensor([b * sum(a**k for k in range(n))]).item()),
    ],
    "3.5": [
        _flops_by_lists,
        lambda config, length, n_loops: Fraction(flops(config, length, n_loops)),
        lambda config, length, n_loops: torch.tensor(flops(config, length, n_loops)),
    ],
    "3.6": [
        _truncated_by_detaching,
        _loss_with(lambda t, n, k: t >= n - k),
    ],
    "3.7": [
        _split_with(),
        _split_with(backward=True),
        lambda *inputs: np.array(split_gradients(*inputs)),
        lambda *inputs: torch.tensor(split_gradients(*inputs)),
        _split_with(norm=lambda found: torch.stack([g.norm() for g in found]).norm()),
    ],
}
