"""Lesson 5: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import math

import numpy as np
import torch
from torch.nn import functional as F

# ---------------------------------------------------------------- 5.1 and 5.2


def loop_by_loop(p, threshold=0.99):
    """ACT's weights from a loop over the loops."""
    left, weights = torch.ones_like(p[0]), []
    for t, now in enumerate(p):
        halts = (1 - left + now >= threshold) | torch.tensor(t == len(p) - 1)
        weights.append(torch.where(halts, left, now) * (left > 0))
        left = torch.where(halts, torch.zeros_like(left), left - now)
    return torch.stack(weights)


def token_by_token(p, threshold=0.99):
    """ACT's weights in plain Python, as nested lists."""
    tokens = p.reshape(len(p), -1).T.tolist()
    rows = []
    for token in tokens:
        spent, row = 0.0, []
        for t, now in enumerate(token):
            if spent >= 1:
                row.append(0.0)
            elif spent + now >= threshold - 1e-9 or t == len(token) - 1:
                row.append(1 - spent)
                spent = 1.0
            else:
                row.append(now)
                spent += now
        rows.append(row)
    return torch.tensor(rows).T.reshape(p.shape).tolist()


def spent_before(p):
    return torch.cat([torch.zeros_like(p[:1]), p.cumsum(0)[:-1]])


def weights_with(p, threshold, last, reaches=lambda total, threshold: total >= threshold, ends=True):
    before, total = spent_before(p), p.cumsum(0)
    running = ~reaches(before, threshold)
    running[0] = True
    halts = running & reaches(total, threshold)
    if ends:
        halts[-1] |= running[-1]
    return torch.where(halts, last(before, total), p) * running


def left(before, total):
    return 1 - before


def detached(p, threshold=0.99):
    before = spent_before(p).detach()
    return weights_with(p, threshold, lambda b, total: (1 - before) + 0 * p)


def in_place(p, threshold=0.99):
    weights = loop_by_loop(p, threshold)
    p *= 0
    return weights


def cost(p, threshold=0.99):
    weights, total = loop_by_loop(p, threshold), p.cumsum(0)
    loops = 1 + (total[:-1] < threshold).sum(0)
    return loops, weights.gather(0, (loops - 1)[None])[0]


def cost_by_token(p, threshold=0.99):
    weights = np.array(token_by_token(p, threshold)).reshape(len(p), -1)
    answer = [(column > 0).sum() + column[(column > 0).nonzero()[0][-1]] for column in weights.T]
    return np.array(answer).reshape(p.shape[1:])


# ---------------------------------------------------------------- 5.3


def online(step, halt, h, n_loops, threshold=0.99, *, first=0, early=False, all_loops=False, any_token=False):
    """ACT with running sums, as the package has it."""
    spent, out, loops = torch.zeros_like(h[..., 0]), torch.zeros_like(h), torch.zeros_like(h[..., 0])
    rest, run = torch.zeros_like(spent), 0
    for t in range(n_loops):
        p = halt(h) if early else None
        h = step(h, t + first)
        p = p if early else halt(h)
        run += 1
        running = spent < threshold
        last = running & ((spent + p >= threshold) | torch.tensor(t == n_loops - 1))
        weight = torch.where(last, 1 - spent, p) * running
        rest = torch.where(last, weight, rest)
        out, loops = out + weight[..., None] * h, loops + running
        spent = torch.where(last, torch.ones_like(spent), spent + weight)
        done = spent >= threshold
        if not all_loops and (done.any() if any_token else done.all()):
            break
    return out, loops + rest, run


def with_gates(step, halt, h, n_loops, threshold=0.99, *, handed=None, over=False, keep=lambda p: p):
    """ACT from the stacked states, with a threshold for the weights that may be another than the loop's."""
    states, gates = [], []
    for t in range(n_loops):
        h = step(h, t)
        states.append(h)
        gates.append(halt(h))
        spent = sum(gates)
        if (spent > threshold if over else spent >= threshold).all():
            break
    p, handed = torch.stack(gates), threshold if handed is None else handed
    mixed = (loop_by_loop(keep(p), handed)[..., None] * torch.stack(states)).sum(0)
    return mixed, sum(cost(p, threshold)), len(states)


def last_state(step, halt, h, n_loops, threshold=0.99):
    states = []

    def keep(h, t):
        states.append(step(h, t))
        return states[-1]

    _, price, run = online(keep, halt, h, n_loops, threshold)
    return states[-1], price, run


def without_graph(step, halt, h, n_loops, threshold=0.99):
    with torch.no_grad():
        return online(step, halt, h, n_loops, threshold)


# ---------------------------------------------------------------- 5.4


def distribution(x, *, ends=True, before=True, rule=None):
    gate = torch.sigmoid(x)
    still = torch.sigmoid(-x).cumprod(0)
    if before:
        still = torch.cat([torch.ones_like(x[:1]), still[:-1]])
    p = rule(x) if rule else gate * still
    return torch.cat([p[:-1], still[-1:]]) if ends else p


def gate_loss(x, losses, prior, strength, *, reduce=torch.mean, divergence=None, **options):
    p = distribution(x, **options)
    divergence = divergence or (lambda p, q: p * (p / q).log())
    return reduce((p * losses + strength * divergence(p, prior[:, None])).sum(0)), p


def gate_in_a_loop(x, losses, prior, strength):
    """The same in logarithms, loop by loop."""
    still, total, ps = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for t in range(len(x)):
        log_p = still if t == len(x) - 1 else still - F.softplus(-x[t])
        still = still - F.softplus(x[t])
        ps.append(log_p.exp())
        total = total + ps[-1] * (losses[t] + strength * (log_p - prior[t].log()))
    return total.mean(), torch.stack(ps)


def gate_by_kl_div(x, losses, prior, strength):
    keep = torch.cat([torch.zeros_like(x[:1]), F.logsigmoid(-x).cumsum(0)[:-1]])
    log_p = keep + torch.cat([F.logsigmoid(x[:-1]), torch.zeros_like(x[-1:])])
    far = F.kl_div(prior.log()[:, None].expand_as(x), log_p, reduction="sum", log_target=True) / x.shape[1]
    return (log_p.exp() * losses).sum(0).mean() + strength * far, log_p.exp()


def gate_averaged(x, losses, prior, strength, divisor):
    """As ``gate_by_kl_div``, averaged as torch does: over all numbers, or over the first axis."""
    _, p = gate_in_a_loop(x, losses, prior, strength)
    far = F.kl_div(prior.log()[:, None].expand_as(x), p, reduction="none").sum() / divisor(p)
    return (p * losses).sum(0).mean() + strength * far, p


def gate_by_xlogy(x, losses, prior, strength):
    """Right values everywhere, and a gradient that is NaN where a probability is 0."""
    _, p = gate_in_a_loop(x, losses, prior, strength)
    far = (torch.xlogy(p, p) - p * prior.log()[:, None]).sum(0)
    return ((p * losses).sum(0) + strength * far).mean(), p


def gate_in_place(x, losses, prior, strength):
    answer = gate_in_a_loop(x, losses, prior, strength)
    losses *= answer[1]
    return answer


# ---------------------------------------------------------------- 5.5


def shares(logits):
    return logits.softmax(-1)


def divergence(p, q):
    return (p * (p / q).log()).sum(-1)


def by_numpy(logits, before):
    now, then = logits.double().numpy(), before.double().numpy()
    now = now - np.logaddexp.reduce(now, -1, keepdims=True)
    then = then - np.logaddexp.reduce(then, -1, keepdims=True)
    return (np.exp(then) * (then - now)).sum(-1)


def by_distributions(logits, before):
    now, then = (torch.distributions.Categorical(logits=x) for x in (logits, before))
    return torch.distributions.kl_divergence(then, now)


def shifted_in_place(logits, before):
    logits -= logits.logsumexp(-1, keepdim=True)
    return (shares(before) * (before.log_softmax(-1) - logits)).sum(-1)


# ---------------------------------------------------------------- 5.6


def cut_short(changes, tolerance, patience):
    changes[:] = changes[-patience:]
    return by_run(changes, tolerance, patience)


def policy(rule):
    """A class of exit policies that answers by ``rule(changes, tolerance, patience)``."""

    class Policy:
        def __init__(self, tolerance, patience):
            self.tolerance, self.patience = tolerance, patience

        def settled(self, changes):
            return rule(changes, self.tolerance, self.patience)

    return Policy


class Forgetful:
    """Gives its answer once, and another afterwards."""

    def __init__(self, tolerance, patience):
        self.tolerance, self.patience, self.said = tolerance, patience, False

    def settled(self, changes):
        recent = changes[-self.patience :]
        now = len(recent) == self.patience and all(change <= self.tolerance for change in recent) and not self.said
        self.said |= now
        return now


class Unruly:
    def __init__(self, tolerance, patience):
        pass


def by_run(changes, tolerance, patience):
    quiet = 0
    for change in changes:
        quiet = quiet + 1 if change <= tolerance else 0
    return quiet >= patience


def by_array(changes, tolerance, patience):
    recent = np.array(changes[max(len(changes) - patience, 0) :])
    return np.bool_(recent.size == patience and (recent <= tolerance).all())


def by_tensor(changes, tolerance, patience):
    if len(changes) < patience:
        return torch.tensor(False)
    return (torch.tensor(changes[-patience:], dtype=torch.double) <= tolerance).all()


WRONG = {
    "5.1": [
        (lambda p, t=0.99: weights_with(p, t, left, ends=False), "run out"),
        (lambda p, t=0.99: p, "as they are"),
        (lambda p, t=0.99: weights_with(p, t, lambda before, total: 1 - total), "*before*"),
        (lambda p, t=0.99: weights_with(p, t, lambda before, total: t - before), "not to the threshold"),
        (lambda p, t=0.99: loop_by_loop(p, t + 1e-6), "at least, not more than"),
        (lambda p, t=0.99: loop_by_loop(p, 0.99), "threshold that is given"),
        (lambda p, t=0.99: p / p.sum(0), "dividing by the sum"),
        (lambda p, t=0.99: distribution(p.logit()), "multiply"),
        (lambda p, t=0.99: loop_by_loop(p.movedim(-1, 0), t).movedim(0, -1), "dim=0"),
        (lambda p, t=0.99: loop_by_loop(p, t).sum(0), "shape"),
        (lambda p, t=0.99: 0.9 * loop_by_loop(p, t), "must sum to 1"),
        (lambda p, t=0.99: loop_by_loop(p, t).detach(), "no gradient"),
        (detached, "gradient"),
        (lambda p, t=0.99: torch.zeros(6, 2, 3), "shape"),
        (lambda p, t=0.99: None, "tensor of weights"),
        (lambda p, t=0.99: loop_by_loop(p.clamp(max=0.98), t), "without a clamp"),
        (in_place, "changes probabilities"),
    ],
    "5.2": [
        (lambda p, t=0.99: cost(p, t)[0], "remainder R is missing"),
        (lambda p, t=0.99: cost(p, t)[1], "loops N are missing"),
        (lambda p, t=0.99: sum(cost(p, t)) - 1, "counted from 1"),
        (lambda p, t=0.99: len(p) + cost(p, t)[1], "not all that were run"),
        (lambda p, t=0.99: sum(cost(p, t + 1e-6)), "at least"),
        (lambda p, t=0.99: sum(cost(p, 0.99)), "threshold that is given"),
        (lambda p, t=0.99: loop_by_loop(p, t), "shape"),
        (lambda p, t=0.99: sum(cost(p, t)).detach(), "no gradient"),
        (lambda p, t=0.99: 3.0, "tensor"),
        (lambda p, t=0.99: sum(cost(p, t)).squeeze(), "one number"),
        (lambda p, t=0.99: (loop_by_loop(p, t) > 0).sum(0) + cost(p, t)[1], "probability is 0"),
        (cost_by_token, "probability is 0"),
        (lambda p, t=0.99: sum(cost(p, t))[None], "shape"),
        (lambda p, t=0.99: (lambda price: (p.zero_(), price)[1])(sum(cost(p, t))), "changes probabilities"),
    ],
    "5.3": [
        (last_state, "last state"),
        (lambda *a, **k: online(*a, **k, all_loops=True), "stop there"),
        (lambda *a, **k: online(*a, **k, any_token=True), "*every*"),
        (lambda *a, **k: online(*a, **k, first=1), "counts from 0"),
        (lambda step, halt, h, n, t=0.99: online(step, lambda h: 0 * halt(h), h, n, t, early=True), "loops were run"),
        (lambda step, halt, h, n, t=0.99: online(step, halt, h, n), "loops were run"),
        (lambda *a, **k: online(*a, **k)[0], "three things"),
        (lambda *a, **k: (online(*a, **k)[0].sum(-1), *online(*a, **k)[1:]), "shape"),
        (lambda *a, **k: (*online(*a, **k)[:2], 99), "the loops run"),
        (lambda *a, **k: (online(*a, **k)[0], online(*a, **k)[1] * 0, 1), "called with"),
        (lambda *a, **k: (lambda out: (out[0], out[1] - 1, out[2]))(online(*a, **k)), "the cost"),
        (without_graph, "no gradient"),
        (lambda *a, **k: with_gates(*a, **k, handed=0.99), "hand the threshold on"),
        (lambda *a, **k: with_gates(*a, **k, over=True), "reaches the threshold exactly"),
        (lambda *a, **k: with_gates(*a, **k, keep=torch.Tensor.detach), "have lost theirs"),
    ],
    "5.4": [
        (lambda *a: gate_loss(*a, ends=False), "takes what remains"),
        (lambda x, *a: gate_loss(x, *a, ends=False, rule=torch.sigmoid), "not halted before"),
        (lambda *a: gate_loss(*a, before=False, ends=False), "*before*"),
        (lambda x, *a: gate_loss(x, *a, ends=False, rule=lambda x: x.softmax(0)), "softmax"),
        (lambda x, *a: gate_loss(x, *a, ends=False, rule=lambda x: loop_by_loop(torch.sigmoid(x))), "ACT"),
        (lambda *a: gate_loss(*a, divergence=lambda p, q: q * (q / p).log()), "the other way"),
        (lambda *a: gate_loss(*a, divergence=lambda p, q: p * p.log()), "prior is missing"),
        (lambda *a: gate_loss(*a, divergence=lambda p, q: -p * p.log()), "not charged"),
        (lambda x, losses, prior, s: gate_loss(x, losses, prior, 0.0), "is missing"),
        (lambda x, losses, prior, s: gate_loss(x, losses, prior, 1.0), "its strength"),
        (lambda *a: gate_loss(*a, reduce=torch.sum), "average over the chains"),
        (lambda *a: gate_loss(*a), "logsigmoid"),
        (lambda *a: gate_loss(*a)[0], "two things"),
        (lambda *a: tuple(part.detach() for part in gate_in_a_loop(*a)), "no gradient"),
        (lambda *a: gate_averaged(*a, torch.numel), "divides by L as well"),
        (lambda *a: gate_averaged(*a, len), "divides by the first axis"),
        (gate_by_xlogy, "the values are right"),
        (gate_in_place, "changes losses"),
    ],
    "5.5": [
        (lambda a, b: divergence(shares(a), shares(b)), "not the other way"),
        (lambda a, b: 0.5 * (shares(a) - shares(b)).abs().sum(-1), "total variation"),
        (lambda a, b: divergence(shares(b), shares(a)) / math.log(2), "natural"),
        (lambda a, b: -divergence(shares(b), shares(a)), "sign"),
        (lambda a, b: divergence(shares(b), shares(a)) / a.shape[-1], "do not average"),
        (lambda a, b: -(shares(b) * a.log_softmax(-1)).sum(-1), "cross-entropy"),
        (lambda a, b: divergence(shares(b), shares(a)), "quite sure"),
        (by_distributions, "quite sure"),
        (shifted_in_place, "changes logits"),
        (lambda a, b: divergence(shares(b), shares(a)).sum(), "one number for each token"),
        (lambda a, b: F.kl_div(a.log_softmax(-1), shares(b), reduction="sum"), "one number for each token"),
    ],
    "5.6": [
        (policy(lambda c, t, n: sum(x <= t for x in c) >= n and c[-1] <= t), "one after the other"),
        (policy(lambda c, t, n: any(x <= t for x in c[-n:])), "any quiet loop"),
        (policy(lambda c, t, n: bool(c) and all(x <= t for x in c[-n:])), "fewer loops"),
        (policy(lambda c, t, n: all(x <= t for x in c[-n:])), "even with none"),
        (policy(lambda c, t, n: bool(c) and c[-1] <= t), "only the newest"),
        (policy(lambda c, t, n: len(c) >= n and all(x < t for x in c[-n:])), "not less than"),
        (policy(lambda c, t, n: len(c) > n and all(x <= t for x in c[-n - 1 :])), "not one more"),
        (policy(lambda c, t, n: len(c) >= n and all(x <= t for x in c[:n])), "last ones of the list"),
        (policy(lambda c, t, n: len(c) >= n and sum(c[-n:]) / n <= t), "and not their mean"),
        (policy(lambda c, t, n: len(c) >= n and not any(x > t for x in c[-n:])), "NaN"),
        (policy(lambda c, t, n: len(c)), "True or False"),
        (policy(lambda c, t, n: False), "should say True"),
        (Forgetful, "keep no count"),
        (policy(cut_short), "changes the list"),
        (Unruly, "no method settled"),
    ],
}
RIGHT = {
    "5.1": [
        loop_by_loop,
        lambda probabilities, threshold=0.99: weights_with(probabilities, threshold, left),
        lambda p, t=0.99: loop_by_loop(p.double(), t).to(p.dtype),
    ],
    "5.2": [
        lambda p, t=0.99: sum(cost(p, t)),
        lambda p, t=0.99: cost(p, t)[0].double() + cost(p, t)[1],
        lambda p, t=0.99: (spent_before(p) < t).sum(0) + (loop_by_loop(p, t).sum(0) - 1 + cost(p, t)[1]),
    ],
    "5.3": [
        online,
        lambda *a, **k: list(online(*a, **k)),
        lambda *a, **k: (lambda out: (*out[:2], torch.tensor(out[2])))(online(*a, **k)),
    ],
    "5.4": [gate_in_a_loop, gate_by_kl_div, lambda *a: list(gate_by_kl_div(*a))],
    "5.5": [
        by_numpy,
        lambda a, b: F.kl_div(a.log_softmax(-1), b.log_softmax(-1), reduction="none", log_target=True).sum(-1),
        lambda a, b: (shares(b) * (b - a)).sum(-1) - b.logsumexp(-1) + a.logsumexp(-1),
    ],
    "5.6": [policy(by_run), policy(by_array), policy(by_tensor)],
}
