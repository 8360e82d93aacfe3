"""How the state of one loop and the encoded input make the state of the next.

==============  ==========================================================================
name here       symbol and source
==============  ==========================================================================
``h``, ``e``    state h_t and encoded input e; Parcae (Prairie et al. 2026)
``decay()``     Ā = exp(−Δ·exp(a)), one number per channel
``a``           log of −A, the continuous decay rate
``delta``       Δ = softplus(delta), the step of the discretisation, one per channel
``b``           B; B̄ = Δ·B
``core``        R, the shared block(s), residual included
==============  ==========================================================================

``LTIInjection`` is Parcae's: h' = R(Ā ⊙ h + B̄ e). ``AdditiveInjection`` is OpenMythos':
h' = Ā ⊙ h + b ⊙ e + R(norm(h + e)), with a scalar Δ and a B that Δ does not scale; it is kept because
the lessons compare the two. What either returns is what the model then puts through ``state_activation``;
the formulas are theirs with ``state_activation="none"``.

Deviation from both: their Ā is below 1 on paper but rounds to exactly 1.0 in float32 where
Δ·exp(a) < 3e-8, and in bfloat16 already below 2e-3. Here Ā = exp(−(1/128 + Δ·exp(a))), at most
0.9923, with exponents held in a range in which float32 neither overflows nor makes 0·∞, so ρ(Ā) < 1
at every value that the parameters can take, in either type. ρ(Ā) < 1 says nothing about the whole
loop map, which contains R: see ``spectral``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mythos_lite.config import ModelConfig
from mythos_lite.model.layers import rms_norm

MIN_RATE = 1.0 / 128.0
"""Smallest decay rate: exp(−1/128) = 0.9922 is below 1 in bfloat16 too, whose last step below 1 is 1/256."""
_EXPONENT_RANGE = 20.0
_INITIAL_DECAY = math.sqrt(1.0 / 5.0)  # Parcae's starting point

Core = Callable[[Tensor], Tensor]


def _decay(rate: Tensor) -> Tensor:
    return torch.exp(-(MIN_RATE + rate))


class LTIInjection(nn.Module):
    """h' = R(Ā ⊙ h + B̄ e): a linear time-invariant system before the core."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(config.d_model))
        self.delta = nn.Parameter(torch.empty(config.d_model))
        self.b = nn.Parameter(torch.empty(config.d_model, config.d_model))

    def reset_parameters(self) -> None:
        step = -math.log(_INITIAL_DECAY) - MIN_RATE
        nn.init.zeros_(self.a)
        nn.init.constant_(self.delta, math.log(math.expm1(step)))
        nn.init.eye_(self.b)

    def _step(self) -> Tensor:
        return F.softplus(self.delta.float().clamp(-_EXPONENT_RANGE, _EXPONENT_RANGE))

    def decay(self) -> Tensor:
        """Ā (D,), float32, in [0, 1)."""
        return _decay(self._step() * torch.exp(self.a.float().clamp(-_EXPONENT_RANGE, _EXPONENT_RANGE)))

    def forward(self, h: Tensor, e: Tensor, core: Core, signal: Tensor | float = 0.0) -> Tensor:
        """State and input (B, T, D) → next state; ``signal`` (D,) is added to what the core sees."""
        driven = self.decay() * h + self._step() * F.linear(e, self.b)
        return core(driven.to(e.dtype) + signal)


class AdditiveInjection(nn.Module):
    """h' = Ā ⊙ h + b ⊙ e + R(norm(h + e)): the core beside the linear system."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(config.d_model))
        self.log_delta = nn.Parameter(torch.empty(1))
        self.b = nn.Parameter(torch.empty(config.d_model))
        self.norm = rms_norm(config.d_model)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.a)
        nn.init.zeros_(self.log_delta)
        nn.init.constant_(self.b, 0.1)

    def decay(self) -> Tensor:
        """Ā (D,), float32, in [0, 1)."""
        # Each is held on its own first: the sum of two extreme values would be infinite or not a number.
        log_rate = sum(p.float().clamp(-_EXPONENT_RANGE, _EXPONENT_RANGE) for p in (self.log_delta, self.a))
        return _decay(torch.exp(log_rate))

    def forward(self, h: Tensor, e: Tensor, core: Core, signal: Tensor | float = 0.0) -> Tensor:
        """State and input (B, T, D) → next state; ``signal`` (D,) is added to what the core sees."""
        kept = (self.decay() * h + self.b * e).to(e.dtype)
        return kept + core(self.norm(h + signal + e))


def make_injection(config: ModelConfig) -> LTIInjection | AdditiveInjection:
    return LTIInjection(config) if config.injection == "lti" else AdditiveInjection(config)
