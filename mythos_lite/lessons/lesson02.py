"""Exercises of lesson 2, routing to experts.

Shapes: N tokens, D width, E experts, k experts per token, L loops, B batch, T positions.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mythos_lite.lessons.exercise import Exercise, as_answer, difference, fitting_hint, gradient_fault, is_number, same

# ---------------------------------------------------------------- 2.1


def route(scores: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores (N, E) and a selection bias (E,) → the k chosen experts, strongest first, and their weights (N, k)."""
    # The bias takes part in the choice ...
    chosen = (scores + bias).topk(k, dim=-1).indices
    # ... and not in the weights: these are the plain scores of the chosen, divided by their sum.
    kept = scores.gather(-1, chosen)
    return chosen, kept / kept.sum(dim=-1, keepdim=True)


def _routed(answer: Callable, scores: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor] | str:
    """Chosen experts and weights as the learner's function gives them, or what is wrong with their form.

    The two are taken from ``raw`` one by one: a pair of one shape would be stacked, indices and weights together.
    """
    made = answer.raw(scores.clone(), bias.clone(), k)
    if made is ... or (isinstance(made, (tuple, list)) and any(part is ... for part in made)):
        raise NotImplementedError
    if not isinstance(made, (tuple, list)) or len(made) != 2:
        return "two tensors are asked for, the chosen experts and their weights"
    chosen, weights = (as_answer(part) for part in made)
    wanted = torch.zeros(len(scores), k)
    for name, part in (("the chosen experts", chosen), ("the weights", weights)):
        if not isinstance(part, Tensor) or part.shape != wanted.shape:
            return f"{name}, for {scores.shape[1]} experts of which {k} are chosen: {difference(part, wanted)}"
    if chosen.is_floating_point():
        return "the chosen experts are numbers of experts, which are whole; did you return the two the other way round?"
    if chosen.dtype != torch.int64:
        kind = str(chosen.dtype).removeprefix("torch.")
        return f"the chosen experts are {kind}; return them as topk gives them, as int64, for others index with them"
    return chosen, weights


_ROUTE_SIZES = ((5, 4, 2), (1, 6, 1), (3, 3, 3), (40, 8, 2))
"""Tokens, experts, experts per token."""


def _route_case(n_tokens: int, n_experts: int, k: int) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(21)
    scores = torch.rand(n_tokens, n_experts, generator=generator).clamp(min=0.05)
    return scores, torch.linspace(0.6, -0.6, n_experts), k


def _fault_in_shape_of_route(answer: Callable) -> str | None:
    for size in _ROUTE_SIZES:
        found = _routed(answer, *_route_case(*size))
        if isinstance(found, str):
            return found
    return None


def _fault_in_route(answer: Callable) -> str | None:
    for size in _ROUTE_SIZES:
        scores, bias, k = _route_case(*size)
        where = f"for {len(bias)} experts of which {k} are chosen: "
        for tried in (bias, torch.zeros_like(bias)):
            if fault := _fault_in_routed(*_routed(answer, scores, tried, k), scores, tried, k):
                return where + fault
    ties = torch.tensor([[0.5, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2]])  # any of the equal ones will do
    if fault := _fault_in_routed(*_routed(answer, ties, torch.zeros(4), 2), ties, torch.zeros(4), 2):
        return f"where experts have equal scores: {fault}"
    return None


def _fault_in_routed(chosen: Tensor, weights: Tensor, scores: Tensor, bias: Tensor, k: int) -> str | None:
    if chosen.min() < 0 or chosen.max() >= scores.shape[1]:
        return f"there is no expert {chosen.max().item()}"
    if any(len(set(experts)) < k for experts in chosen.tolist()):
        return "a token has the same expert twice"
    biased = scores + bias
    got, best = biased.gather(-1, chosen), biased.topk(k, dim=-1).values
    if not same(got.sort(descending=True).values, best):
        if same(scores.gather(-1, chosen), scores.topk(k).values):
            return "the choice leaves out the bias: the largest of score + bias are chosen"
        if same(got.sort().values, biased.topk(k, largest=False).values.sort().values):
            return "the experts with the smallest scores are chosen"
        return "these are not the experts with the largest score + bias"
    if not same(got, best):
        return "the experts are right, but not in order: the strongest comes first, by score + bias"
    kept = scores.gather(-1, chosen)
    if fault := difference(weights, kept / kept.sum(dim=-1, keepdim=True)):
        return f"the weights: {fault}{_hint_on_weights(weights, kept, got, scores)}"
    return None


def _hint_on_weights(weights: Tensor, kept: Tensor, biased: Tensor, scores: Tensor) -> str:
    if same(weights, kept):
        return "; these are the scores themselves, and the weights of a token must sum to 1"
    if same(weights, kept / scores.sum(dim=-1, keepdim=True)):
        return "; divide by the sum over the chosen experts, not over all of them"
    if same(weights, biased / biased.sum(dim=-1, keepdim=True)) or same(weights, biased):
        return "; the bias is for the choice only: the weights come from the scores without it"
    if same(weights, kept / kept.sum()) or same(weights, kept / kept.sum(dim=0)):
        return "; every token has a sum of its own: add up along the last axis"
    if same(weights, kept.softmax(dim=-1)):
        return "; the scores are positive already: divide by their sum, no softmax"
    return ""


def _fault_in_gradient_of_route(answer: Callable) -> str | None:
    scores, bias, k = _route_case(5, 4, 2)
    return gradient_fault(
        lambda own: answer.raw(own.clone(), bias.clone(), k)[1], lambda scores: route(scores, bias, k)[1], scores
    )


# ---------------------------------------------------------------- 2.2


def mixture(x: Tensor, chosen: Tensor, weights: Tensor, experts: list) -> Tensor:
    """Tokens (N, D), their chosen experts (N, k) and weights (N, k) → the weighted sums of the answers (N, D)."""
    y = torch.zeros_like(x)
    for i, expert in enumerate(experts):
        # The tokens that chose expert i, and whether it was their first choice, their second, ...
        token, place = (chosen == i).nonzero(as_tuple=True)  # both (n_i,)
        answers = expert(x[token])  # (n_i, D): no other token is computed
        y = y.index_add(0, token, weights[token, place].unsqueeze(1) * answers)
    return y


class _Counting:
    """An expert without learned weights that counts the tokens it is given."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.tokens = matrix, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.tokens += x.numel() // x.shape[-1]
        return torch.tanh(x @ self.matrix) + x.sum(dim=-1, keepdim=True)


def _mixture_case(n_tokens: int, n_experts: int, k: int, width: int) -> tuple[Tensor, Tensor, Tensor, list[_Counting]]:
    """A case in which the last expert goes without tokens, where there are enough others."""
    generator = torch.Generator().manual_seed(22)
    x = torch.randn(n_tokens, width, generator=generator)
    used = max(k, n_experts - 1)
    chosen = torch.rand(n_tokens, used, generator=generator).argsort(dim=-1)[:, :k]
    weights = torch.rand(n_tokens, k, generator=generator) + 0.2
    experts = [_Counting(torch.randn(width, width, generator=generator)) for _ in range(n_experts)]
    return x, chosen, weights / weights.sum(dim=-1, keepdim=True), experts


_MIXTURE_SIZES = ((7, 4, 2, 5), (1, 3, 3, 4), (6, 5, 1, 3), (30, 6, 2, 8))
"""Tokens, experts, experts per token, width."""


def _copies(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _fault_in_shape_of_mixture(answer: Callable) -> str | None:
    for size in _MIXTURE_SIZES:
        x, chosen, weights, experts = _mixture_case(*size)
        got = answer(*_copies(x, chosen, weights), experts)
        if not isinstance(got, Tensor) or got.shape != x.shape:
            return f"for {len(x)} tokens of width {x.shape[1]}: {difference(got, x)}"
    return None


def _fault_in_mixture(answer: Callable) -> str | None:
    for size in _MIXTURE_SIZES:
        x, chosen, weights, experts = _mixture_case(*size)
        handed = x.clone()
        got, wanted = answer(handed, *_copies(chosen, weights), experts), mixture(x, chosen, weights, experts)
        if not torch.equal(handed, x):
            return "x itself has been changed: gather the sums in a tensor of their own, such as zeros_like(x)"
        if fault := difference(got, wanted):
            n_tokens, n_experts, k, _ = size
            hint = _hint_on_mixture(got, x, chosen, weights, experts)
            return f"for {n_tokens} tokens, {n_experts} experts, {k} per token: {fault}{hint}"
    return None


def _hint_on_mixture(got: Tensor, x: Tensor, chosen: Tensor, weights: Tensor, experts: list[_Counting]) -> str:
    k = chosen.shape[1]
    last = x.clone()  # what is left where each expert overwrites what the one before it wrote
    for i, expert in enumerate(experts):
        token, place = (chosen == i).nonzero(as_tuple=True)
        last[token] = weights[token, place].unsqueeze(1) * expert(x[token])
    rules = {
        "the answers are added up without their weights": mixture(x, chosen, torch.ones_like(weights), experts),
        "this is the plain mean of the answers; each has its weight": mixture(
            x, chosen, torch.full_like(weights, 1 / k), experts
        ),
        "only the first choice of each token answers": mixture(x, chosen[:, :1], weights[:, :1], experts),
        "every answer has the weight of the first choice": mixture(
            x, chosen, weights[:, :1].expand_as(weights), experts
        ),
        "every expert overwrites what those before it wrote for its tokens; add to it": last,
        "the token itself is added; the residual connection is outside the layer": (
            x + mixture(x, chosen, weights, experts)
        ),
        "the tokens are weighted before the expert sees them; weigh its answers": sum(
            torch.stack([experts[e](x[t : t + 1] * weights[t, place])[0] for t, e in enumerate(chosen[:, place])])
            for place in range(k)
        ),
    }
    return next((f"; {hint}" for hint, rule in rules.items() if same(got, rule)), "")


def _fault_in_work_of_mixture(answer: Callable) -> str | None:
    for size in _MIXTURE_SIZES:
        x, chosen, weights, experts = _mixture_case(*size)
        answer(*_copies(x, chosen, weights), experts)
        for i, expert in enumerate(experts):
            if expert.tokens != (wanted := int((chosen == i).sum())):
                return (
                    f"expert {i} was chosen by {wanted} of {len(x)} tokens and was given {expert.tokens}: "
                    "hand it its own tokens only, or nothing is saved"
                )
    return None


def _fault_in_gradient_of_mixture(answer: Callable) -> str | None:
    x, chosen, weights, experts = _mixture_case(7, 4, 2, 5)
    matrices = torch.stack([expert.matrix for expert in experts])

    def with_matrices(function: Callable) -> Callable:
        def run(x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
            return function(x.clone(), chosen.clone(), weights.clone(), [_Counting(matrix) for matrix in experts])

        return run

    return gradient_fault(with_matrices(answer.raw), with_matrices(mixture), x, weights, matrices)


# ---------------------------------------------------------------- 2.3


def expert_load(chosen: Tensor, n_experts: int) -> Tensor:
    """Chosen experts (…, k) → how many tokens each expert is given (E,)."""
    return torch.bincount(chosen.flatten(), minlength=n_experts)


def _fault_in_expert_load(answer: Callable) -> str | None:
    generator = torch.Generator().manual_seed(22)
    sizes = (((3, 5), 4, 4, 2), ((9,), 6, 4, 2), ((3, 5), 3, 2, 1), ((1,), 5, 3, 3), ((9,), 12, 9, 2))
    for shape, n_experts, used, k in sizes:
        chosen = torch.rand(*shape, used, generator=generator).argsort(dim=-1)[..., :k]
        got, wanted = answer(chosen.clone(), n_experts), expert_load(chosen, n_experts)
        if fault := difference(got, wanted):
            if isinstance(got, Tensor) and got.shape == (chosen.max() + 1,) != wanted.shape:
                return f"{fault}; an expert that nobody chose needs its place too (`minlength`)"
            if same(got, wanted / wanted.sum()) or same(got, wanted / chosen[..., 0].numel()):
                return f"{fault}; these are shares: the numbers of tokens are asked for"
            if k > 1 and same(got, expert_load(chosen[..., :1], n_experts)):
                return f"{fault}; only the strongest expert of each token is counted, and all k of them do the work"
            return f"for choices of shape {tuple(chosen.shape)} among {n_experts} experts: {fault}"
    return None


# ---------------------------------------------------------------- 2.4


def balance_step(bias: Tensor, load: Tensor, rate: float) -> Tensor:
    """One step of loss-free balancing: selection bias (E,) and load (E,) → the new selection bias (E,)."""
    load = load.float()
    return bias + rate * torch.sign(load.mean() - load)


_LOADS = (
    ([10, 2, 0, 4], 0.001), ([6, 6, 6, 6], 0.01), ([0, 90, 0, 0, 0], 0.1), ([1, 1, 1, 2], 0.01),
    ([3, 0, 1, 7, 2, 2, 0, 6], 0.02),
)  # fmt: skip
"""Loads and rates. The mean load of the last two is no whole number: 1.25, to be rounded down, and 2.625, up."""


def _fault_in_balance_step(answer: Callable) -> str | None:
    cases = [(torch.linspace(-0.2, 0.3, len(load)), torch.tensor(load), rate) for load, rate in _LOADS]
    answers = [answer(bias.clone(), load.clone(), rate) for bias, load, rate in cases]
    for (bias, load, rate), got in zip(cases, answers, strict=True):
        wanted = balance_step(bias, load, rate)
        if fault := difference(got, wanted, 1e-6):
            where = f"for load {load.tolist()} and rate {rate}: {fault}"
            if not isinstance(got, Tensor) or got.shape != wanted.shape:
                return where
            hints = (fitting_hint({hint: rule}, cases, answers, 1e-6) for hint, rule in _BALANCE_RULES)
            return "; ".join([where, *filter(None, hints)][:2])
    return None


def _step_towards(middle: Callable) -> Callable:
    """The rule with something else than the mean load, ``middle(load)``."""
    return lambda bias, load, rate: bias + rate * torch.sign(middle(load.float()) - load)


def _step_by_size(size: Callable) -> Callable:
    """The rule with the difference itself, divided by ``size(load)``, in place of its sign."""

    def rule(bias: Tensor, load: Tensor, rate: float) -> Tensor:
        off = load.float().mean() - load
        return bias + (rate * off / size(load.float())).nan_to_num()

    return rule


_ONLY_THE_SIGN = "only the sign of the difference counts, not its size"
_MEAN_KEEPS = "an expert with exactly the mean load keeps its bias"
_BALANCE_RULES = (
    ("the new bias starts from the old one", lambda bias, load, rate: balance_step(bias, load, rate) - bias),
    ("the busy experts must become less likely to be chosen, not more",
     lambda bias, load, rate: balance_step(bias, load, -rate)),
    ("compare with the mean load, not with the median", _step_towards(torch.median)),
    ("the mean load need not be a whole number: do not round it", _step_towards(lambda load: load.mean().round())),
    ("the mean load need not be a whole number: divide with /, not with //",
     _step_towards(lambda load: load.mean().floor())),
    ("divide by the number of experts, which is not always 4", _step_towards(lambda load: load.sum() / 4)),
    (_MEAN_KEEPS, lambda bias, load, rate: torch.where(load <= load.float().mean(), bias + rate, bias - rate)),
    (_MEAN_KEEPS, lambda bias, load, rate: torch.where(load < load.float().mean(), bias + rate, bias - rate)),
    (_ONLY_THE_SIGN, _step_by_size(lambda load: 1.0)),
    (_ONLY_THE_SIGN, _step_by_size(torch.sum)),
    (_ONLY_THE_SIGN, _step_by_size(torch.mean)),
    (_ONLY_THE_SIGN, _step_by_size(lambda load: (load.mean() - load).abs().max())),
)  # fmt: skip


# ---------------------------------------------------------------- 2.5


def balance_loss(scores: Tensor, chosen: Tensor) -> Tensor:
    """Scores (N, E) and chosen experts (N, k) → the auxiliary loss (), which is 1 where everything is even."""
    n_experts = scores.shape[1]
    # What happened: the share of choices that fell on each expert. It is counted, and has no gradient.
    load = expert_load(chosen, n_experts)
    share = load / load.sum()  # (E,)
    # What the router wanted: its mean share of the scores. This is what the gradient can change.
    wanted = (scores / scores.sum(dim=-1, keepdim=True)).mean(dim=0)  # (E,)
    return n_experts * (share * wanted).sum()


def _balance_loss_cases() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(25)
    cases = []
    for n_tokens, n_experts, k in ((6, 4, 2), (9, 5, 1), (1, 3, 2)):
        scores = torch.rand(n_tokens, n_experts, generator=generator).clamp(min=0.05)
        scores[:, 0] += 0.5  # a favourite, so that the loads are uneven
        bias = torch.linspace(-0.6, 0.6, n_experts)  # so that the chosen are not those with the largest scores
        cases.append((scores, (scores + bias).topk(k, dim=-1).indices))
    return cases


def _fault_in_balance_loss(answer: Callable) -> str | None:
    for scores, chosen in _balance_loss_cases():
        got, wanted = answer(*_copies(scores, chosen)), balance_loss(scores, chosen)
        if fault := difference(got, wanted):
            hint = _hint_on_balance_loss(got, scores, chosen) if is_number(got) else ""
            n_tokens, n_experts = scores.shape
            return f"for {n_tokens} tokens and {n_experts} experts, {chosen.shape[1]} per token: {fault}{hint}"
    even = torch.full((4, 4), 0.5)
    if fault := difference(answer(even.clone(), torch.tensor([[0, 1], [2, 3], [0, 2], [1, 3]])), 1.0):
        return f"where all is even: {fault}"
    return None


def _hint_on_balance_loss(got: float, scores: Tensor, chosen: Tensor) -> str:
    n_experts, k = scores.shape[1], chosen.shape[1]
    load = expert_load(chosen, n_experts).float()

    def shares_of(chosen: Tensor) -> Tensor:
        return expert_load(chosen, n_experts) / chosen.numel()

    share, normal = shares_of(chosen), scores / scores.sum(dim=-1, keepdim=True)
    right = balance_loss(scores, chosen)
    rules = {
        "the factor E is missing, which makes it 1 where all is even": right / n_experts,
        "the shares sum to k: divide the load by all choices, not by the tokens": k * right,
        "the load is in tokens; take its shares": n_experts * (load * normal.mean(dim=0)).sum(),
        "normalise the scores of each token before you take the mean over tokens": (
            n_experts * (share * scores.mean(dim=0)).sum()
        ),
        "the scores of each token are to sum to 1, not those of all tokens together": (
            n_experts * (share * scores.sum(dim=0) / scores.sum()).sum()
        ),
        "this is E Σ f², of counts alone, and counts have no gradient: one factor is the mean score": (
            n_experts * share.square().sum()
        ),
        "this is E Σ P², of scores alone: one factor is the share of the choices": (
            n_experts * normal.mean(dim=0).square().sum()
        ),
        "add up over the experts, do not take their mean": right / n_experts**2,
        "the shares are those of `chosen`, which need not be the experts with the largest scores": (
            n_experts * (shares_of(scores.topk(k, dim=-1).indices) * normal.mean(dim=0)).sum()
        ),
        "the scores are positive already: divide them by their sum, no softmax": (
            n_experts * (share * scores.softmax(dim=-1).mean(dim=0)).sum()
        ),
        "take the mean over the tokens, not their sum": len(scores) * right,
    }
    return next((f"; {hint}" for hint, rule in rules.items() if same(got, rule)), "")


def _fault_in_gradient_of_balance_loss(answer: Callable) -> str | None:
    for scores, chosen in _balance_loss_cases():
        reference = lambda scores, chosen=chosen: balance_loss(scores, chosen)  # noqa: E731
        if fault := gradient_fault(lambda own, chosen=chosen: answer.raw(own.clone(), chosen), reference, scores):
            return fault
    return None


# ---------------------------------------------------------------- 2.6


def with_capacity(chosen: Tensor, weights: Tensor, n_experts: int, capacity: int) -> Tensor:
    """Chosen experts and weights (N, k) → the weights (N, k), 0 where the expert had no place left."""
    # One queue for all: the first choices of all tokens, then their second choices, ...
    queue = chosen.T.flatten()  # (k·N,)
    joins = F.one_hot(queue, n_experts)  # (k·N, E), 1 where somebody joins the queue of an expert
    # How many have joined that expert's queue so far, oneself included: the place in it, from 1.
    place = (joins.cumsum(dim=0) * joins).sum(dim=1)  # (k·N,)
    kept = (place <= capacity).view(chosen.T.shape).T  # back to (N, k)
    return weights * kept


_CAPACITY_SIZES = ((8, 3, 2, 3), (8, 3, 2, 5), (12, 4, 1, 2), (6, 4, 3, 4), (5, 3, 2, 0), (1, 4, 2, 1), (5, 3, 2, 9),
                   (8, 5, 3, 4), (20, 8, 2, 4))  # fmt: skip
"""Tokens, experts, experts per token, capacity."""


def _capacity_case(n_tokens: int, n_experts: int, k: int, capacity: int) -> tuple[Tensor, Tensor, int, int]:
    generator = torch.Generator().manual_seed(26)
    chosen = torch.rand(n_tokens, n_experts, generator=generator).argsort(dim=-1)[:, :k]
    weights = torch.rand(n_tokens, k, generator=generator) + 0.1
    return chosen, weights / weights.sum(dim=-1, keepdim=True), n_experts, capacity


def _fault_in_shape_of_with_capacity(answer: Callable) -> str | None:
    for size in _CAPACITY_SIZES:
        case = _capacity_case(*size)
        got = answer(*_copies(*case[:2]), *case[2:])
        if not isinstance(got, Tensor) or got.shape != case[1].shape:
            return f"for {size[0]} tokens with {size[2]} experts each: {difference(got, case[1])}"
        if got.dtype == torch.bool:
            return "it says which choices have a place; return the weights, with 0 for the others"
    return None


def _fault_in_with_capacity(answer: Callable) -> str | None:
    for size in _CAPACITY_SIZES:
        case = _capacity_case(*size)
        handed = _copies(*case[:2])
        got, wanted = answer(*handed, *case[2:]), with_capacity(*case)
        if fault := difference(got, wanted):
            n_tokens, n_experts, k, capacity = size
            hint = _hint_on_with_capacity(got, *case)
            return f"for {n_tokens} tokens, {k} of {n_experts} experts each and capacity {capacity}: {fault}{hint}"
        for name, before, after in zip(("chosen", "weights"), case, handed, strict=False):
            if not torch.equal(before, after):
                return f"`{name}` itself has been changed, and others may still need it: work on a copy (`.clone()`)"
    return None


def _queued(chosen: Tensor, order: Sequence[tuple[int, int]], capacity: int) -> Tensor:
    """Which choices (N, k) find a place, if (token, place among its choices) stand in this order."""
    kept, taken = torch.zeros_like(chosen, dtype=torch.bool), [0] * (int(chosen.max()) + 1)
    for token, place in order:
        expert = int(chosen[token, place])
        kept[token, place] = taken[expert] < capacity
        taken[expert] += 1
    return kept


def _hint_on_with_capacity(got: Tensor, chosen: Tensor, weights: Tensor, n_experts: int, capacity: int) -> str:
    n_tokens, k = chosen.shape
    by_choice = [(token, place) for place in range(k) for token in range(n_tokens)]
    by_weight = sorted(by_choice, key=lambda one: -weights[one].item())
    kept = _queued(chosen, by_choice, capacity)
    right = weights * kept
    apart = torch.cat([_queued(chosen[:, j : j + 1], [(t, 0) for t in range(n_tokens)], capacity) for j in range(k)], 1)
    rules = {
        "one place too few: an expert takes as many tokens as its capacity says": (
            weights * _queued(chosen, by_choice, capacity - 1)
        ),
        "one place too many: an expert takes as many tokens as its capacity says, and no more": (
            weights * _queued(chosen, by_choice, capacity + 1)
        ),
        "token after token stands in the queue here, each with all of its choices; the first choices of all tokens "
        "come before any second choice": weights * _queued(chosen, sorted(by_choice), capacity),
        "the first choices stand right here; after them come the second choices of all tokens, before any third": (
            weights * _queued(chosen, sorted(by_choice, key=lambda one: (one[1] > 0, one)), capacity)
        ),
        "the line holds the first choices of all tokens first: back with .view(k, N).T, not .view(N, k)": (
            weights * kept.T.flatten().view(n_tokens, k)
        ),
        "the queues are in the order of the weights here; they are in the order of the tokens": (
            weights * _queued(chosen, by_weight, capacity)
        ),
        "the queue runs from the last token to the first here": weights * _queued(chosen, [
            (n_tokens - 1 - token, place) for token, place in by_choice
        ], capacity),
        "the second choices have a queue of their own here; they join the one in which the first choices stand": (
            weights * apart
        ),
        "a token loses all of its choices here if one of them has no place; it keeps the others": (
            weights * kept.all(dim=1, keepdim=True)
        ),
        "the choices that have a place are the ones set to 0": weights * ~kept,
        "the weights that stay are not to be divided anew": right / right.sum(dim=1, keepdim=True).clamp(min=1e-9),
        "nothing is dropped": weights,
    }  # fmt: skip
    return next((f"; {hint}" for hint, rule in rules.items() if same(got, rule)), "")


def _fault_in_gradient_of_with_capacity(answer: Callable) -> str | None:
    chosen, weights, n_experts, capacity = _capacity_case(8, 3, 2, 3)
    return gradient_fault(
        lambda own: answer.raw(chosen.clone(), own.clone(), n_experts, capacity),
        lambda weights: with_capacity(chosen, weights, n_experts, capacity),
        weights,
    )


# ---------------------------------------------------------------- 2.7


def lane_changes(chosen: Tensor) -> Tensor:
    """Choices of every loop (L, B, T, k) → whether a token's set differs from the loop before: (L−1, B, T)."""
    sets = chosen.sort(dim=-1).values  # which of them is the strongest does not matter
    return (sets[1:] != sets[:-1]).any(dim=-1)


def _every_exchange(n_experts: int, k: int) -> Tensor:
    """Two loops (2, 1, T, k) in which the tokens go from every set of k experts to every other one."""
    sets = torch.combinations(torch.arange(n_experts), k)
    old, new = (1 - torch.eye(len(sets))).nonzero(as_tuple=True)
    return torch.stack([sets[old], sets[new]]).unsqueeze(1)


def _random_lanes() -> Tensor:
    generator = torch.Generator().manual_seed(24)
    return torch.rand(4, 3, 5, 4, generator=generator).argsort(dim=-1)[..., :2]


def _fault_in_shape_of_lane_changes(answer: Callable) -> str | None:
    for chosen in (_random_lanes(), _random_lanes()[:2, :1], _random_lanes()[..., :1]):
        wanted = lane_changes(chosen)
        got = answer(chosen.clone())
        if not isinstance(got, Tensor) or got.shape != wanted.shape:
            hint = ""
            if isinstance(got, Tensor) and got.shape == chosen.shape[:-1]:
                hint = "; the first loop has none before it"
            elif isinstance(got, Tensor) and got.shape == (*wanted.shape, chosen.shape[-1]):
                hint = "; a token has changed lanes if any of its experts is another"
            elif is_number(got):
                hint = "; the mean is taken later, by whoever asks"
            return f"for choices of shape {tuple(chosen.shape)}: {difference(got, wanted)}{hint}"
    return None


def _fault_in_lane_changes(answer: Callable) -> str | None:
    same_experts = torch.tensor([[2, 0], [1, 3]]).expand(3, 1, 2, 2)
    swapped = torch.stack([same_experts[0], same_experts[0].flip(-1)])
    fixed = (
        (same_experts, 0.0, "where every token keeps its experts", "no token has changed"),
        (swapped, 0.0, "where the strongest and the second expert change places", "the two still do the work"),
        (torch.tensor([[[[0, 1, 2]]], [[[1, 2, 0]]]]), 0.0, "where experts [0, 1, 2] become [1, 2, 0]",
         "it is the same set in another order"),
        (torch.tensor([[[[0, 1]]], [[[0, 2]]]]), 1.0, "where one of a token's two experts is replaced",
         "that token has changed lanes"),
        (torch.tensor([[[[0, 3]]], [[[1, 2]]]]), 1.0, "where experts [0, 3] give way to [1, 2]",
         "their sums agree, the sets do not"),
        (torch.tensor([[[[0, 5]]], [[[4, 3]]]]), 1.0, "where experts [0, 5] give way to [4, 3]",
         "their sums of squares agree, the sets do not"),
        (_every_exchange(13, 2), 1.0, "where every set of 2 of 13 experts gives way to every other one", "all change"),
        (_every_exchange(8, 3), 1.0, "where every set of 3 of 8 experts gives way to every other one", "all change"),
    )  # fmt: skip
    for chosen, wanted, where, why in fixed:
        if not same(answer(chosen.clone()), torch.full(lane_changes(chosen).shape, wanted)):
            return f"{where}: {why}"
    chosen = _random_lanes()
    got, wanted = answer(chosen.clone()), lane_changes(chosen)
    if fault := difference(got, wanted):
        sets = chosen.sort(dim=-1).values
        if same(got, (sets[1:] != sets[:1]).any(dim=-1)):
            return f"for random choices: {fault}; compare each loop with the one before it, not with the first"
        return f"for random choices over four loops: {fault}"
    return None


EXERCISES = (
    Exercise(
        number="2.1", title="the router", minutes=10, difficulty=2,
        stages={
            "shape": _fault_in_shape_of_route, "values": _fault_in_route, "gradient": _fault_in_gradient_of_route,
        },
        solution=route,
    ),
    Exercise(
        number="2.2", title="dispatch and sum", minutes=15, difficulty=2,
        stages={
            "shape": _fault_in_shape_of_mixture, "values": _fault_in_mixture, "work": _fault_in_work_of_mixture,
            "gradient": _fault_in_gradient_of_mixture,
        },
        solution=mixture,
    ),
    Exercise(
        number="2.3", title="the load", minutes=3, difficulty=1,
        stages={"values": _fault_in_expert_load}, solution=expert_load,
    ),
    Exercise(
        number="2.4", title="balance by a bias", minutes=5, difficulty=1,
        stages={"values": _fault_in_balance_step}, solution=balance_step,
    ),
    Exercise(
        number="2.5", title="balance by a loss", minutes=10, difficulty=2,
        stages={"values": _fault_in_balance_loss, "gradient": _fault_in_gradient_of_balance_loss},
        solution=balance_loss,
    ),
    Exercise(
        number="2.6", title="capacity, and who is dropped", minutes=30, difficulty=3,
        stages={
            "shape": _fault_in_shape_of_with_capacity, "values": _fault_in_with_capacity,
            "gradient": _fault_in_gradient_of_with_capacity,
        },
        solution=with_capacity,
    ),
    Exercise(
        number="2.7", title="who changes lanes", minutes=10, difficulty=2,
        stages={"shape": _fault_in_shape_of_lane_changes, "values": _fault_in_lane_changes}, solution=lane_changes,
    ),
)  # fmt: skip
