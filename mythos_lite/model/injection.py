"""How the state of one loop and the encoded input make the state of the next.

==============  ==========================================================================
name here       symbol and source
==============  ==========================================================================
``h``, ``e``    state h_t and encoded input e; Parcae (Prairie et al. 2026)
``decay()``     Ā = exp(−Δ·exp(a)), one number per channel
``a``           log of −A, the continuous decay rate
``delta``       Δ = softplus(delta), the step of the discretisation, one per channel
``b``           B; B̄ = Δ·B
R               the shared core blocks, residual included, which the model runs
==============  ==========================================================================

``LTIInjection`` is Parcae's: h' = R(Ā ⊙ h + B̄ e). ``AdditiveInjection`` is OpenMythos': h' = Ā ⊙ h + b ⊙ e +
R(norm(h + e)), with a scalar Δ and a B that Δ does not scale; it is kept because the lessons compare the two. In either
``given`` is what stays the same from loop to loop, and is computed once. With it ``drive`` is what R gets and
``bypass`` what is added to R's output. The model then applies ``state_activation``; the formulas are theirs with
``"none"``.

Deviation from both: their Ā is below 1 on paper but rounds to exactly 1.0 in float32 where Δ·exp(a) < 3e-8, and in
bfloat16 already below 2e-3. Here Ā = exp(−(1/128 + Δ·exp(a))), at most 0.9923, and exponents are clamped to a range in
which float32 neither overflows nor gives 0·∞, so ρ(Ā) < 1 for all values of the parameters, in either type. ρ(Ā) < 1
says nothing about the whole loop map, which contains R: see ``spectral``.

``NoInjection`` is h' = R(h): the input enters as h_0 alone, and has to be kept in the state.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mythos_lite.config import ModelConfig
from mythos_lite.model.layers import rms_norm

Given = tuple[Tensor, ...]
MIN_RATE = 1.0 / 128.0
"""Smallest decay rate: exp(−1/128) = 0.9922 is below 1 in bfloat16 too, whose last step below 1 is 1/256."""
INITIAL_DECAY = math.sqrt(1.0 / 5.0)  # Parcae's starting point


def _clamped(exponent: Tensor) -> Tensor:
    return exponent.float().clamp(-20.0, 20.0)


class LTIInjection(nn.Module):
    """h' = R(Ā ⊙ h + B̄ e): a linear time-invariant system before the core."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(config.d_model))
        self.delta = nn.Parameter(torch.empty(config.d_model))
        self.b = nn.Parameter(torch.empty(config.d_model, config.d_model))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.a)
        nn.init.constant_(self.delta, math.log(math.expm1(-math.log(INITIAL_DECAY) - MIN_RATE)))
        nn.init.zeros_(self.b).diagonal().fill_(1.0)

    def _delta(self) -> Tensor:
        return F.softplus(_clamped(self.delta))

    def decay(self) -> Tensor:
        """Ā (D,), float32, in [0, 1)."""
        return torch.exp(-(MIN_RATE + self._delta() * torch.exp(_clamped(self.a))))

    def given(self, e: Tensor) -> Given:
        """Input (B, T, D) → Ā and B̄ e."""
        return self.decay(), self._delta() * F.linear(e, self.b)

    def drive(self, h: Tensor, given: Given, signal: Tensor | float = 0.0) -> Tensor:
        """State (B, T, D) → what the core is given; ``signal`` (D,) is added to it."""
        decay, term = given
        return (decay * h + term).to(h.dtype) + signal

    def bypass(self, h: Tensor, given: Given) -> Tensor | float:
        """State (B, T, D) → what is added to the core's output: nothing."""
        return 0.0


class AdditiveInjection(nn.Module):
    """h' = Ā ⊙ h + b ⊙ e + R(norm(h + e)): the core beside the linear system."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(config.d_model))
        self.log_delta = nn.Parameter(torch.empty(1))
        self.b = nn.Parameter(torch.empty(config.d_model))
        self.norm = rms_norm(config.d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.a)
        nn.init.zeros_(self.log_delta)
        nn.init.constant_(self.b, 0.1)

    def decay(self) -> Tensor:
        """Ā (D,), float32, in [0, 1)."""
        # Each is clamped before they are added: the sum of two extreme values would be infinite or not a number.
        return torch.exp(-(MIN_RATE + torch.exp(_clamped(self.log_delta) + _clamped(self.a))))

    def given(self, e: Tensor) -> Given:
        """Input (B, T, D) → Ā, b ⊙ e and e."""
        return self.decay(), self.b * e, e

    def drive(self, h: Tensor, given: Given, signal: Tensor | float = 0.0) -> Tensor:
        """State (B, T, D) → what the core is given; ``signal`` (D,) is added before the norm."""
        return self.norm(h + signal + given[2])

    def bypass(self, h: Tensor, given: Given) -> Tensor | float:
        """State (B, T, D) → what is added to the core's output."""
        decay, term, _ = given
        return (decay * h + term).to(h.dtype)


class NoInjection(nn.Module):
    """h' = R(h)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.d_model = config.d_model

    def reset_parameters(self) -> None:
        """It has none."""

    def decay(self) -> Tensor:
        """Ā (D,): the state goes to the core as it is."""
        return torch.ones(self.d_model)

    def given(self, e: Tensor) -> Given:
        """Nothing."""
        return ()

    def drive(self, h: Tensor, given: Given, signal: Tensor | float = 0.0) -> Tensor:
        """State (B, T, D) → what the core is given; ``signal`` (D,) is added to it."""
        return h + signal

    def bypass(self, h: Tensor, given: Given) -> Tensor | float:
        """State (B, T, D) → what is added to the core's output: nothing."""
        return 0.0


INJECTIONS = {"lti": LTIInjection, "additive": AdditiveInjection, "none": NoInjection}


def make_injection(config: ModelConfig) -> LTIInjection | AdditiveInjection | NoInjection:
    return INJECTIONS[config.injection](config)
