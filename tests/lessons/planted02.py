"""Lesson 2: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import math
from collections import Counter

import numpy as np
import torch
from torch.nn import functional as F

# ---------------------------------------------------------------- 2.1


def _route(scores, bias, k, *, weigh=None, choose=None):
    chosen = choose(scores, bias, k) if choose else (scores + bias).topk(k, dim=-1).indices
    kept = scores.gather(-1, chosen)
    weights = weigh(kept, chosen, scores, bias) if weigh else kept / kept.sum(-1, keepdim=True)
    return chosen, weights


def _weighing(weigh):
    return lambda scores, bias, k: _route(scores, bias, k, weigh=weigh)


def _choosing(choose):
    return lambda scores, bias, k: _route(scores, bias, k, choose=choose)


def _biased_in_place(scores, bias, k):
    scores += bias
    return _route(scores, torch.zeros_like(bias), k)


def _by_plain_score(scores, bias, k):
    chosen, weights = _route(scores, bias, k)
    order = weights.argsort(dim=-1, descending=True)
    return chosen.gather(-1, order), weights.gather(-1, order)


def _by_masking(scores, bias, k):
    order = (scores + bias).argsort(dim=-1, descending=True)[:, :k]
    mask = F.one_hot(order, scores.shape[1]).sum(dim=1)
    dense = scores * mask / (scores * mask).sum(dim=-1, keepdim=True)
    return order, dense.gather(1, order)


def _by_rows(scores, bias, k):
    found = [sorted(range(len(bias)), key=lambda i: -(row[i] + bias[i]).item())[:k] for row in scores]
    rows = [torch.stack([row[i] for i in experts]) for row, experts in zip(scores, found, strict=True)]
    return [torch.tensor(found), torch.stack([row / row.sum() for row in rows])]


# ---------------------------------------------------------------- 2.2


def _mixture(x, chosen, weights, experts, *, weigh=lambda answers, w: answers * w.unsqueeze(1), first=0):
    y = torch.zeros_like(x)
    for i, expert in enumerate(experts):
        token, place = (chosen[:, : first or None] == i).nonzero(as_tuple=True)
        y = y.index_add(0, token, weigh(expert(x[token]), weights[token, place]))
    return y


def _overwriting(x, chosen, weights, experts):
    y = torch.zeros_like(x)
    for i, expert in enumerate(experts):
        token, place = (chosen == i).nonzero(as_tuple=True)
        y[token] = weights[token, place].unsqueeze(1) * expert(x[token])
    return y


def _dense(x, chosen, weights, experts):
    full = torch.zeros(len(x), len(experts)).scatter(1, chosen, weights)
    return torch.einsum("ne,end->nd", full, torch.stack([expert(x) for expert in experts]))


def _in_place_of_x(x, chosen, weights, experts):
    y = _mixture(x, chosen, weights, experts)
    x.zero_()
    return y


def _weight_of_first(x, chosen, weights, experts):
    return _mixture(x, chosen, weights[:, :1].expand_as(weights), experts)


def _weighted_before(x, chosen, weights, experts):
    y = torch.zeros_like(x)
    for i, expert in enumerate(experts):
        token, place = (chosen == i).nonzero(as_tuple=True)
        y = y.index_add(0, token, expert(x[token] * weights[token, place].unsqueeze(1)))
    return y


def _detached_weights(x, chosen, weights, experts):
    return _mixture(x, chosen, weights.detach(), experts)


def _without_gradient(x, chosen, weights, experts):
    with torch.no_grad():
        return _mixture(x, chosen, weights, experts)


def _by_mask(x, chosen, weights, experts):
    y = torch.zeros_like(x)
    for i, expert in enumerate(experts):
        picks = chosen == i
        mine = picks.any(dim=1)
        if mine.any():
            y[mine] += (weights * picks).sum(dim=1)[mine].unsqueeze(1) * expert(x[mine])
    return y


def _token_by_token(x, chosen, weights, experts):
    return torch.stack([
        sum(w * experts[e](token) for e, w in zip(mine.tolist(), ws, strict=True))
        for token, mine, ws in zip(x, chosen, weights, strict=True)
    ])  # fmt: skip


# ---------------------------------------------------------------- 2.5


def _shares(scores, chosen):
    load = F.one_hot(chosen, scores.shape[1]).sum(dim=(0, 1)).float()
    return load / load.sum(), (scores / scores.sum(-1, keepdim=True)).mean(0)


def _deepseek(scores, chosen):
    """The form of the DeepSeek-V3 report, eq. 17 to 20: f has the factor E/(kT)."""
    tokens, n_experts = scores.shape
    f = n_experts / (chosen.shape[1] * tokens) * F.one_hot(chosen, n_experts).sum(dim=(0, 1))
    return f @ F.normalize(scores, p=1, dim=-1).mean(dim=0)


def _token_by_token_loss(scores, chosen):
    n_experts, counts = scores.shape[1], Counter(chosen.flatten().tolist())
    wanted = [torch.stack([row[i] / row.sum() for row in scores]).mean() for i in range(n_experts)]
    return n_experts * sum(counts[i] / chosen.numel() * wanted[i] for i in range(n_experts))


# ---------------------------------------------------------------- 2.6


def _kept(chosen, order, capacity):
    kept, taken = torch.zeros(chosen.shape), Counter()
    for token, place in order:
        expert = int(chosen[token, place])
        kept[token, place] = float(taken[expert] < capacity)
        taken[expert] += 1
    return kept


def _by_choice(chosen):
    return [(token, place) for place in range(chosen.shape[1]) for token in range(chosen.shape[0])]


def _token_after_token(chosen, weights, n_experts, capacity):
    return weights * _kept(chosen, sorted(_by_choice(chosen)), capacity)


def _first_choices_then_tokens(chosen, weights, n_experts, capacity):
    order = sorted(_by_choice(chosen), key=lambda one: (one[1] > 0, one))
    return weights * _kept(chosen, order, capacity)


def _viewed_the_wrong_way(chosen, weights, n_experts, capacity):
    return weights * _kept(chosen, _by_choice(chosen), capacity).T.flatten().view(chosen.shape)


def _for_four_experts(chosen, weights, n_experts, capacity):
    joins = F.one_hot(chosen.T.flatten(), 4)
    return weights * ((joins.cumsum(dim=0) * joins).sum(dim=1) <= capacity).view(chosen.T.shape).T


def _for_two_choices(chosen, weights, n_experts, capacity):
    joins = F.one_hot(chosen.T.flatten(), n_experts)
    return weights * ((joins.cumsum(dim=0) * joins).sum(dim=1) <= capacity).view(2, -1).T


def _in_place_of_weights(chosen, weights, n_experts, capacity):
    kept = _kept(chosen, _by_choice(chosen), capacity)
    for token, place in (kept == 0).nonzero().tolist():
        weights[token, place] = 0
    return weights


def _by_expert(chosen, weights, n_experts, capacity):
    """A loop over experts: what stands behind the first ``capacity`` places of a queue is set to 0."""
    kept = weights.clone()
    queues = chosen.T  # (k, N): row by row it is in the order of the queue
    for expert in range(n_experts):
        place, token = (queues == expert).nonzero(as_tuple=True)
        kept[token[capacity:], place[capacity:]] = 0
    return kept


def _by_weight(chosen, weights, n_experts, capacity):
    return weights * _kept(chosen, sorted(_by_choice(chosen), key=lambda one: -weights[one].item()), capacity)


def _off_by(places):
    return lambda chosen, weights, n_experts, capacity: weights * _kept(chosen, _by_choice(chosen), capacity + places)


def _own_queue_per_choice(chosen, weights, n_experts, capacity):
    joins = F.one_hot(chosen, n_experts)
    place = (joins.cumsum(dim=0) * joins).sum(dim=-1)
    return weights * (place <= capacity)


def _all_or_nothing(chosen, weights, n_experts, capacity):
    return weights * _kept(chosen, _by_choice(chosen), capacity).amin(dim=1, keepdim=True)


def _anew(chosen, weights, n_experts, capacity):
    kept = weights * _kept(chosen, _by_choice(chosen), capacity)
    return kept / kept.sum(dim=1, keepdim=True).clamp(min=1e-9)


def _choice_by_choice(chosen, weights, n_experts, capacity):
    """The second choices wait behind all first ones: the counts of earlier columns are carried over."""
    taken, columns = torch.zeros(n_experts, dtype=torch.long), []
    for column in chosen.unbind(dim=1):
        joins = F.one_hot(column, n_experts)
        columns.append((taken + joins.cumsum(dim=0)).gather(1, column.unsqueeze(1)).squeeze(1) <= capacity)
        taken = taken + joins.sum(dim=0)
    return torch.where(torch.stack(columns, dim=1), weights, 0.0)


# ---------------------------------------------------------------- 2.7


def _sets(chosen, n_experts=16):
    """(…, k) choices as sets: (…, E) of zeros and ones."""
    return F.one_hot(chosen, n_experts).sum(dim=-2)


def _sums(chosen):
    """Sum and sum of squares, which tell any two pairs apart, and not any two sets of three."""
    return torch.stack([chosen.sum(-1), chosen.square().sum(-1)], dim=-1)


def _changes_by_sets(chosen):
    sets = np.empty(chosen.shape[:-1], dtype=object)
    for place in np.ndindex(sets.shape):
        sets[place] = frozenset(chosen[place].tolist())
    return (sets[1:] != sets[:-1]).astype(bool)


WRONG = {
    "2.1": [
        (_weighing(lambda kept, *_: kept), "sum to 1"),
        (_weighing(lambda kept, c, scores, b: kept / scores.sum(-1, keepdim=True)), "not over all"),
        (_weighing(lambda kept, c, s, b: (kept + b[c]) / (kept + b[c]).sum(-1, keepdim=True)), "for the choice only"),
        (_weighing(lambda kept, *_: kept.softmax(-1)), "no softmax"),
        (_weighing(lambda kept, *_: kept / kept.sum()), "sum of its own"),
        (_weighing(lambda kept, *_: kept / kept.sum(0)), "sum of its own"),
        (_weighing(lambda kept, *_: (kept / kept.sum(-1, keepdim=True)).detach()), "gradient ✗"),
        (_choosing(lambda scores, bias, k: scores.topk(k).indices), "leaves out the bias"),
        (_choosing(lambda scores, bias, k: (scores + bias).topk(k, largest=False).indices), "smallest"),
        (_choosing(lambda scores, bias, k: (scores + bias).topk(k).indices.flip(-1)), "strongest comes first"),
        (_choosing(lambda scores, bias, k: (scores + bias).topk(k, dim=0).indices), "shape ✗"),
        (_choosing(lambda scores, bias, k: (scores + bias).argmax(-1, keepdim=True).expand(-1, k)), "twice"),
        (_biased_in_place, "for the choice only"),
        (lambda scores, bias, k: _route(scores, bias, k)[::-1], "other way round"),
        (lambda scores, bias, k: _route(scores, bias, k)[1], "two tensors"),
        (lambda scores, bias, k: (_route(scores, bias, k)[0].int(), _route(scores, bias, k)[1]), "int32"),
        (_by_plain_score, "by score + bias"),
        (lambda scores, bias, k: _route(scores, bias, 2), "shape ✗"),
    ],
    "2.2": [
        (lambda *a: _mixture(*a, weigh=lambda answers, w: answers), "without their weights"),
        (lambda x, c, w, e: _mixture(x, c, torch.full_like(w, 1 / w.shape[1]), e), "plain mean"),
        (lambda *a: _mixture(*a, first=1), "only the first choice"),
        (_weight_of_first, "weight of the first choice"),
        (_overwriting, "overwrites"),
        (_dense, "its own tokens only"),
        (_in_place_of_x, "has been changed"),
        (_weighted_before, "weigh its answers"),
        (lambda x, *a: x + _mixture(x, *a), "residual"),
        (_detached_weights, "no gradient reaches weights"),
        (_without_gradient, "carries no gradient"),
        (lambda *a: _mixture(*a).sum(dim=1), "shape ✗"),
        (lambda *a: _mixture(*a).view(7, 5), "raised RuntimeError"),
    ],
    "2.3": [
        (lambda chosen, n_experts: torch.bincount(chosen.flatten()), "minlength"),
        (lambda chosen, n_experts: np.bincount(chosen.flatten()), "minlength"),
        (lambda chosen, n_experts: torch.bincount(chosen.flatten(), minlength=n_experts) / chosen.numel(), "shares"),
        (lambda chosen, n_experts: torch.bincount(chosen[..., 0].flatten(), minlength=n_experts), "only the strongest"),
        (lambda chosen, n_experts: chosen.float().mean(), "shape"),
        (lambda chosen, n_experts: torch.bincount(chosen.flatten(), minlength=8)[:n_experts], "(12,) is asked for"),
        (lambda chosen, n_experts: [0.5, 0.5], "its shape is (2,), and (4,) is asked for"),
        (lambda chosen, n_experts: Counter(chosen.flatten().tolist()), "Counter, and a tensor"),
    ],
    "2.4": [
        (lambda bias, load, rate: bias - rate * torch.sign(load.float().mean() - load), "not more"),
        (lambda bias, load, rate: bias + rate * (load.float().mean() - load), "only the sign"),
        (lambda bias, load, rate: rate * torch.sign(load.float().mean() - load), "from the old one"),
        (lambda bias, load, rate: bias + rate * torch.sign(load.float().median() - load), "not with the median"),
        (
            lambda bias, load, rate: bias + rate * ((load <= load.float().mean()).float() * 2 - 1),
            "exactly the mean load",
        ),
        (
            lambda bias, load, rate: bias + rate * ((load < load.float().mean()).float() * 2 - 1),
            "exactly the mean load",
        ),
        (
            lambda bias, load, rate: bias + F.normalize(load.float().mean() - load, p=torch.inf, dim=0) * rate,
            "only the sign",
        ),
        (lambda bias, load, rate: bias + rate * torch.sign(load.sum() // len(load) - load), "with /, not with //"),
        (lambda bias, load, rate: bias + rate * torch.sign(load.float().mean().round() - load), "do not round it"),
        (lambda bias, load, rate: bias + rate * torch.sign(load.sum() / 4 - load), "not always 4"),
        (lambda bias, load, rate: bias + 0.01 * torch.sign(load.float().mean() - load), "rate 0.001"),
    ],
    "2.5": [
        (lambda s, c: (f_p := _shares(s, c))[0] @ f_p[1], "factor E is missing"),
        (lambda s, c: _deepseek(s, c) * c.shape[1], "sum to k"),
        (lambda s, c: (_shares(s, c)[0] * s.mean(0)).sum() * s.shape[1], "normalise the scores"),
        (lambda s, c: (_shares(s, c)[0] * s.sum(0) / s.sum()).sum() * s.shape[1], "not those of all tokens"),
        (lambda s, c: s.shape[1] * _shares(s, c)[0].square().sum(), "no gradient"),
        (lambda s, c: s.shape[1] * _shares(s, c)[1].square().sum(), "of scores alone"),
        (lambda s, c: _deepseek(s, c) * c.numel(), "in tokens"),
        (lambda s, c: _deepseek(s, c).detach(), "carries no gradient"),
        (lambda s, c: _deepseek(s, c).item(), "carries no gradient"),
        (lambda s, c: _shares(s, c)[0] * _shares(s, c)[1] * s.shape[1], "a number is asked for"),
        (lambda s, c: (_shares(s, c)[0] * _shares(s, c)[1]).mean(), "do not take their mean"),
        (lambda s, c: _deepseek(s, s.topk(c.shape[1]).indices), "need not be the experts with the largest scores"),
        (lambda s, c: s.shape[1] * _shares(s, c)[0] @ s.softmax(-1).mean(0), "no softmax"),
        (lambda s, c: _deepseek(s, c) * len(s), "not their sum"),
        (lambda s, c: _deepseek(s.detach() + 0 * s, c), "gradient ✗"),
    ],
    "2.6": [
        (_token_after_token, "before any second choice"),
        (_off_by(-1), "one place too few"),
        (_off_by(1), "one place too many"),
        (_by_weight, "order of the tokens"),
        (_first_choices_then_tokens, "before any third"),
        (_viewed_the_wrong_way, ".view(k, N).T"),
        (_for_four_experts, "raised RuntimeError"),
        (_for_two_choices, "raised RuntimeError"),
        (_in_place_of_weights, "has been changed"),
        (_own_queue_per_choice, "join the one"),
        (_all_or_nothing, "keeps the others"),
        (_anew, "divided anew"),
        (lambda c, w, e, n: w, "nothing is dropped"),
        (lambda c, w, e, n: w * (1 - _kept(c, _by_choice(c), n)), "set to 0"),
        (lambda c, w, e, n: _kept(c, _by_choice(c), n) > 0, "return the weights"),
        (lambda c, w, e, n: (w * _kept(c, _by_choice(c), n)).sum(dim=1), "shape ✗"),
        (lambda c, w, e, n: w.detach() * _kept(c, _by_choice(c), n), "gradient ✗"),
        (lambda c, w, e, n: w * _kept(c, [(len(c) - 1 - t, p) for t, p in _by_choice(c)], n), "from the last token"),
    ],
    "2.7": [
        (lambda chosen: (chosen[1:] != chosen[:-1]).any(-1), "change places"),
        (lambda chosen: _sets(chosen)[1:] != _sets(chosen)[:-1], "shape ✗"),
        (lambda chosen: chosen.sort().values[1:] != chosen.sort().values[:-1], "any of its experts"),
        (lambda chosen: (_sets(chosen)[1:] != _sets(chosen)[:1]).any(-1), "not with the first"),
        (lambda chosen: (_sets(chosen)[1:] != _sets(chosen)[:-1]).any(-1).float().mean(), "the mean is taken later"),
        (lambda chosen: (chosen.sort().values[1:] == chosen.sort().values[:-1]).all(-1), "no token has changed"),
        (lambda chosen: (chosen.sort().values[1:] != chosen.sort().values[:-1]).all(-1), "has changed lanes"),
        (lambda chosen: chosen.sum(-1).diff(dim=0) != 0, "their sums agree"),
        (lambda chosen: chosen.square().sum(-1).diff(dim=0) != 0, "the sets do not"),
        (lambda chosen: (chosen**3).sum(-1).diff(dim=0) != 0, "every set of 2"),
        (lambda chosen: (_sums(chosen).diff(dim=0) != 0).any(-1), "every set of 3"),
        (
            lambda chosen: ((chosen[1:] != chosen[:-1]) & (chosen[1:] != chosen[:-1].flip(-1))).any(-1),
            "in another order",
        ),
        (
            lambda chosen: (chosen[1:] != chosen[:-1]).any(-1) & (chosen[1:] != chosen[:-1].flip(-1)).any(-1),
            "in another order",
        ),
        (lambda chosen: chosen[..., 0].diff(dim=0, prepend=chosen[:1, ..., 0]) != 0, "none before it"),
    ],
}
RIGHT = {
    "2.1": [_by_masking, _by_rows, lambda scores, bias, k: list(_route(scores, bias, k))],
    "2.2": [_by_mask, _token_by_token, lambda *a: _mixture(*a)],
    "2.3": [
        lambda chosen, n_experts: F.one_hot(chosen, n_experts).flatten(0, -2).sum(dim=0),
        lambda chosen, n_experts: np.bincount(chosen.flatten(), minlength=n_experts),
        lambda chosen, n_experts: [(chosen == i).sum() for i in range(n_experts)],
        lambda chosen, n_experts: tuple(chosen.flatten().tolist().count(i) for i in range(n_experts)),
        lambda chosen, n_experts: torch.histc(chosen.float(), bins=n_experts, min=-0.5, max=n_experts - 0.5),
    ],
    "2.4": [
        lambda bias, load, rate: (
            bias - rate * (load > load.float().mean()).float() + rate * (load < load.float().mean()).float()
        ),
        lambda bias, load, rate: bias.numpy() + rate * np.sign(np.mean(load.numpy()) - load.numpy()),
        lambda bias, load, rate: bias.add_(rate * torch.sign(load.sum() - len(load) * load)),
        lambda bias, load, rate: [
            b + math.copysign(rate, mean - c) * (c != mean)
            for mean in [load.sum().item() / len(load)]
            for b, c in zip(bias.tolist(), load.tolist(), strict=True)
        ],
    ],
    "2.5": [
        _deepseek,
        _token_by_token_loss,
        lambda s, c: (_shares(s, c)[0] * _shares(s, c)[1]).sum().mul(s.shape[1]).double(),
    ],
    "2.6": [
        lambda c, w, e, n: w * _kept(c, _by_choice(c), n),
        _choice_by_choice,
        _by_expert,
        lambda c, w, e, n: w.masked_fill(_kept(c, _by_choice(c), n) == 0, 0.0),
    ],
    "2.7": [
        lambda chosen: (_sets(chosen)[1:] != _sets(chosen)[:-1]).any(-1),
        _changes_by_sets,
        lambda chosen: np.any(np.diff(np.sort(chosen, axis=-1), axis=0) != 0, axis=-1),
        lambda chosen: (_sets(chosen).diff(dim=0) != 0).any(-1).float(),
    ],
}
