"""When to stop looping: learned halting (ACT), and an exit that needs no training.

===================  ====================================================================
name here            symbol and source
===================  ====================================================================
``ActHalting``       h = σ(w·s + b), the halting unit; Graves 2016, §2
``weights``          p_t: the halting probability, the remainder R at the last; §2
``ponder_cost``      ρ = N + R, updates used plus remainder; §2.1
``ConvergenceExit``  stop when the answer no longer changes; Huginn (Geiping et al. 2025), §6
===================  ====================================================================

ACT's output is the weighted sum of the states so far. The weights always sum to 1: where the loops end before the
threshold is reached, the last loop gets what remains. (OpenMythos drops that remainder: its weights sum to .018 after
one loop.) The sum is kept up to date for every budget, so one pass gives the output at each loop count.

Shapes: B batch, T positions, D width, V vocabulary, L loops.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mythos_lite.checks import check_int, check_number


class ActStep(NamedTuple):
    """ACT after a loop, if the loops end there. Nothing is computed of it unless it is read."""

    state: Tensor  # (B, T, D) of this loop
    left: Tensor  # (B, T) probability that it weighs: what the loops before have left
    before: Tensor | float  # (B, T, D) weighted sum of the loops before
    updates: Tensor  # (B, T) loops used
    remainder: Tensor  # (B, T) what the last of these found left

    @property
    def output(self) -> Tensor:
        """(B, T, D) weighted sum of the states, in their type."""
        return mixture(self)

    @property
    def ponder_cost(self) -> Tensor:
        """(B, T) loops used plus remainder."""
        return self.updates + self.remainder


def mixture(act: ActStep) -> Tensor:
    """``act.output``, the weighted sum of the states so far: (B, T, D), in their type."""
    return (act.before + act.left.unsqueeze(-1) * act.state.float()).to(act.state.dtype)


class ActState:
    """Halting of one forward pass, fed one loop at a time. Sums are float32 whatever the state's type."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._weights: list[Tensor] = []  # (B, T) each, as if the budget went on
        self._sum: Tensor | float = 0.0  # (B, T, D) of the states, with these weights
        self._left: Tensor | None = None  # (B, T) probability not yet spent
        self._step: ActStep | None = None

    def update(self, probability: Tensor, h: Tensor) -> ActStep:
        """Halting probability (B, T) and state (B, T, D) of a loop → ACT if it is the last one."""
        left = torch.ones_like(probability) if self._left is None else self._left
        running = left > 0
        weight, then = spend(probability, left, self.threshold)
        if self._step is None:
            self._step = ActStep(h, left, 0.0, running.float(), left)
        else:
            updates = self._step.updates + running.float()
            self._step = ActStep(h, left, self._sum, updates, torch.where(running, left, self._step.remainder))
        self._weights.append(weight)
        self._sum = self._sum + weight.unsqueeze(-1) * h.float()
        self._left = then
        return self._step

    @property
    def weights(self) -> Tensor:
        """(L, B, T) weights of the loops so far, the last one's taking what remained; they sum to 1 over L."""
        return torch.stack([*self._weights[:-1], self._step.left])

    @property
    def ponder_cost(self) -> Tensor:
        """(B, T) loops used plus remainder."""
        return self._step.ponder_cost


def spend(probability: Tensor, left: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """A loop's halting probability and what the loops before left, each (B, T) → its weight p_t, and what it leaves."""
    halts = 1.0 - left + probability >= threshold
    weight = torch.where(halts, left, probability) * (left > 0)
    return weight, torch.where(halts, torch.zeros_like(left), left - weight)


class ActHalting(nn.Module):
    """The halting unit: one probability per token and loop."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.unit = nn.Linear(d_model, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, T, D) → halting probabilities (B, T), float32."""
        return torch.sigmoid(self.unit(h).squeeze(-1).float())


@dataclass(frozen=True, kw_only=True)
class ConvergenceExit:
    """Stop once the answer has stopped changing; nothing is learned for it.

    The change is the total variation between the read-outs of two successive loops, between 0 and 1, at the token where
    it is largest. It must stay at ``tolerance`` or below for ``patience`` loops in a row, because a single quiet loop
    also occurs while information is still on its way. For the same reason all tokens count, not only the one whose
    answer is wanted, and a token that follows others in a cache is run for at least as many loops as they were.

    In a small model reading out costs as much as a loop, or more. With ``every`` the answer is read out after every so
    many loops, and the changes are those from one read-out to the next.
    """

    tolerance: float = 1e-2
    patience: int = 3
    every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "tolerance", check_number("tolerance", self.tolerance, 0.0, 1.0))
        for name in ("patience", "every"):
            object.__setattr__(self, name, check_int(name, getattr(self, name), 1))

    def settled(self, changes: list[float]) -> bool:
        """Whether to stop, given one change for each read-out from the second on. NaN is not quiet.

        Any other object with such a method can be an exit policy too.
        """
        recent = changes[-self.patience :]
        return len(recent) == self.patience and all(change <= self.tolerance for change in recent)


def answer_change(logits: Tensor, before: Tensor) -> Tensor:
    """Total variation between two read-outs (B, T, V) → (B, T)."""
    return 0.5 * (logits.float().softmax(-1) - before.float().softmax(-1)).abs().sum(-1)
