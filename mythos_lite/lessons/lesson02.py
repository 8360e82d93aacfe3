"""Exercises of lesson 2, routing to experts."""

from collections.abc import Callable

import torch
from torch import Tensor

from mythos_lite.lessons.exercise import Exercise, difference, same

# ---------------------------------------------------------------- 2.1


def gates_of(scores: Tensor, chosen: Tensor) -> Tensor:
    """Scores (N, E) and the chosen experts (N, k) → gates of the chosen (N, k), which sum to 1 per token."""
    kept = scores.gather(-1, chosen)
    return kept / kept.sum(dim=-1, keepdim=True)


def _fault_in_gates_of(answer: Callable) -> str | None:
    generator = torch.Generator().manual_seed(21)
    for n_tokens, n_experts, k in ((5, 4, 2), (3, 6, 1), (2, 3, 3)):
        scores = torch.rand(n_tokens, n_experts, generator=generator).clamp(min=0.05)
        # Not the largest scores: the selection bias may prefer others.
        chosen = torch.rand(n_tokens, n_experts, generator=generator).argsort(dim=-1)[:, :k]
        got, wanted = answer(scores.clone(), chosen.clone()), gates_of(scores, chosen)
        if fault := difference(got, wanted):
            where = f"for {n_experts} experts of which {k} are chosen: {fault}"
            if not isinstance(got, Tensor) or got.shape != wanted.shape:
                return where
            kept = scores.gather(-1, chosen)
            if same(got, kept):
                return f"{where}; these are the scores themselves, and the gates of a token must sum to 1"
            if same(got, kept / scores.sum(dim=-1, keepdim=True)):
                return f"{where}; divide by the sum over the chosen experts, not over all of them"
            if same(got, kept / kept.sum()) or same(got, kept / kept.sum(dim=0)):
                return f"{where}; every token has a sum of its own: add up along the last axis"
            if same(got, kept.softmax(dim=-1)):
                return f"{where}; the scores are positive already: divide by their sum, no softmax"
            if same(got, gates_of(scores, scores.topk(k, dim=-1).indices)):
                return f"{where}; use the experts in `chosen`: with a selection bias they need not have the top scores"
            return where
    return None


# ---------------------------------------------------------------- 2.2


def load_share(chosen: Tensor, n_experts: int) -> Tensor:
    """Chosen experts (B, T, k) → share of all choices that falls on each expert (E,), which sums to 1."""
    counts = torch.bincount(chosen.flatten(), minlength=n_experts)
    return counts / counts.sum()


def _fault_in_load_share(answer: Callable) -> str | None:
    generator = torch.Generator().manual_seed(22)
    for n_experts, used, k in ((4, 4, 2), (6, 4, 2), (3, 2, 1)):  # the last experts may get nothing
        chosen = torch.rand(3, 5, used, generator=generator).argsort(dim=-1)[..., :k]
        got, wanted = answer(chosen.clone(), n_experts), load_share(chosen, n_experts)
        if fault := difference(got, wanted):
            if isinstance(got, Tensor) and got.shape == (chosen.max() + 1,) != wanted.shape:
                return f"{fault}; an expert that nobody chose needs its place too (`minlength`)"
            if isinstance(got, Tensor) and got.shape == wanted.shape:
                if abs(got.double().sum().item() - k) < 1e-4 and k > 1:
                    return f"the shares sum to {k}: divide by the number of choices, not by the number of tokens"
                if abs(got.double().sum().item() - 1) > 1e-4:
                    return f"the shares sum to {got.double().sum().item():g}, not to 1"
                if same(got, load_share(chosen[..., :1], n_experts)):
                    return "only the strongest expert of each token is counted; all k of them do the work"
            return f"for {n_experts} experts, {k} per token: {fault}"
    return None


# ---------------------------------------------------------------- 2.3


def bias_step(bias: Tensor, load: Tensor, rate: float) -> Tensor:
    """One step of loss-free balancing: bias and load (E,) → the new bias (E,)."""
    load = load.float()
    return bias + rate * torch.sign(load.mean() - load)


def _fault_in_bias_step(answer: Callable) -> str | None:
    for load, rate in (([10, 2, 0, 4], 0.001), ([6, 6, 6, 6], 0.01), ([0, 90, 0, 0, 0], 0.1)):
        load = torch.tensor(load)
        bias = torch.linspace(-0.2, 0.3, len(load))
        got, wanted = answer(bias.clone(), load.clone(), rate), bias_step(bias, load, rate)
        if fault := difference(got, wanted, 1e-6):
            where = f"for load {load.tolist()} and rate {rate}: {fault}"
            if not isinstance(got, Tensor) or got.shape != wanted.shape:
                return where
            moved, off = got - bias, load.float().mean() - load.float()
            if same(got, wanted - bias, 1e-6):
                return f"{where}; the new bias starts from the old one"
            if same(moved, bias - wanted, 1e-6):
                return f"{where}; the busy experts must become less likely to be chosen, not more"
            if same(moved, rate * torch.sign(load.float().median() - load.float()), 1e-6):
                return f"{where}; compare with the mean load, not with the median"
            if same(torch.where(off == 0, 0.0, moved), wanted - bias, 1e-6):
                return f"{where}; an expert with exactly the mean load keeps its bias"
            if any(
                same(moved, rate * off / size, 1e-6) for size in (1, load.sum(), load.float().mean(), off.abs().max())
            ):
                return f"{where}; only the sign of the difference counts, not its size"
            return where
    return None


# ---------------------------------------------------------------- 2.4


def share_that_changes(chosen: Tensor) -> float:
    """Choices of every loop (L, B, T, k) → share of tokens whose set of experts differs from one loop to the next."""
    sets = chosen.sort(dim=-1).values  # which of them is the strongest does not matter
    return (sets[1:] != sets[:-1]).any(dim=-1).float().mean().item()


def _every_exchange(n_experts: int, k: int) -> Tensor:
    """Two loops (2, 1, T, k) in which the tokens go from every set of k experts to every other one."""
    sets = torch.combinations(torch.arange(n_experts), k)
    old, new = (1 - torch.eye(len(sets))).nonzero(as_tuple=True)
    return torch.stack([sets[old], sets[new]]).unsqueeze(1)


def _fault_in_share_that_changes(answer: Callable) -> str | None:
    same_experts = torch.tensor([[2, 0], [1, 3]]).expand(3, 1, 2, 2)
    if fault := difference(answer(same_experts.clone()), 0.0):
        return f"where every token keeps its experts: {fault}"
    swapped = torch.stack([same_experts[0], same_experts[0].flip(-1)])
    if fault := difference(answer(swapped.clone()), 0.0):
        return f"where the strongest and the second expert change places: {fault}; the two still do the work"
    one_of_two = torch.tensor([[[[0, 1]]], [[[0, 2]]]])
    if fault := difference(answer(one_of_two.clone()), 1.0):
        return f"where one of a token's two experts is replaced: {fault}; that token has changed lanes"
    for old, new in (([0, 3], [1, 2]), ([0, 5], [4, 3])):
        if fault := difference(answer(torch.tensor([[[old]], [[new]]])), 1.0):
            return f"where experts {old} give way to {new}: {fault}; their sums or squares may agree, the sets do not"
    for n_experts, k in ((13, 2), (8, 3)):
        if fault := difference(answer(_every_exchange(n_experts, k)), 1.0):
            return f"where every set of {k} of {n_experts} experts gives way to every other one: {fault}"
    generator = torch.Generator().manual_seed(24)
    chosen = torch.rand(4, 3, 5, 4, generator=generator).argsort(dim=-1)[..., :2]
    got, wanted = answer(chosen.clone()), share_that_changes(chosen)
    if fault := difference(got, wanted):
        sets = chosen.sort(dim=-1).values
        if same(got, (sets[1:] != sets[:1]).any(dim=-1).float().mean().item()):
            return f"{fault}; compare each loop with the one before it, not with the first"
        if same(got, wanted * 3 / 4):
            return f"{fault}; between four loops there are three steps: divide by those"
        return f"for random choices over four loops: {fault}"
    return None


EXERCISES = (
    Exercise(
        number="2.1", title="the gates", minutes=5, difficulty=2, find_fault=_fault_in_gates_of, solution=gates_of,
    ),
    Exercise(
        number="2.2", title="measure the load", minutes=5, difficulty=1,
        find_fault=_fault_in_load_share, solution=load_share,
    ),
    Exercise(
        number="2.3", title="one step of balancing", minutes=4, difficulty=1,
        find_fault=_fault_in_bias_step, solution=bias_step,
    ),
    Exercise(
        number="2.4", title="who changes lanes", minutes=8, difficulty=3,
        find_fault=_fault_in_share_that_changes, solution=share_that_changes,
    ),
)  # fmt: skip
