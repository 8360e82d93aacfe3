"""A window that is spread out: attention to oneself and the positions d, 2d, … back, by folding the sequence.

The positions with the same remainder modulo d stand d apart from each other. As a sequence of their own they are
neighbours, so that an ordinary window over it, rotary distances included, is one over every d-th position of the whole.
The whole sequence's first position goes before each of them: with a window of 2 it is what a position sees that has
none d back. (With a wider one a single copy stands for all that are missing; the class of the first position has it
twice.)

The model holds the first position's state at its input. If it took part in the loop it would be combined with itself
over and over, and where that leads no training asks.

Dilation that grows by a factor from layer to layer is WaveNet's (van den Oord et al. 2016, §2.1). Here it grows from
loop to loop, with the same weights: for a window of 2 these are the strides of the parallel prefix sum of Hillis &
Steele (1986), and the core is its operation.

Shapes: B batch, T positions, D width, d dilation.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def fold(x: Tensor, dilation: int) -> Tensor:
    """(B, T, D) → (B·d, 1 + ⌈T/d⌉, D): for each remainder the first position, and those d apart; zeros at the end."""
    padded = F.pad(x, (0, 0, 0, -x.shape[1] % dilation))
    apart = padded.unflatten(1, (-1, dilation)).transpose(1, 2)  # (B, d, ⌈T/d⌉, D)
    first = x[:, None, :1].expand(-1, dilation, -1, -1)
    return torch.cat([first, apart], dim=2).flatten(0, 1)


def unfold(x: Tensor, dilation: int, n_positions: int) -> Tensor:
    """(B·d, 1 + ⌈T/d⌉, D) → (B, T, D): the positions in their order, without what ``fold`` added."""
    apart = x[:, 1:].unflatten(0, (-1, dilation))  # (B, d, ⌈T/d⌉, D)
    return apart.transpose(1, 2).flatten(1, 2)[:, :n_positions]
