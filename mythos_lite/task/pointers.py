"""Following pointers: all that is needed is in sight from the start, and still it takes k steps.

Every node of a graph has one edge, to another node or to itself. The edges stand in random order, one token each, and
behind them a node to start from; the answer is where its path ends, a node that points to itself. In what order the
edges are needed the text does not say: reading it once from left to right is of no use, and a window would hide most.

A path of k steps is cut from a random row of the nodes, and so are the others, which end elsewhere. Which node points
to itself says only that the answer is one of ``n_ends``.

Shapes: B graphs, N nodes, T = N + 1 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mythos_lite.checks import check_choice, check_int
from mythos_lite.config import ModelConfig
from mythos_lite.task.chains import SPLITS, Batch, Task


@dataclass(frozen=True, kw_only=True)
class PointerTask(Task):
    """Where does the path end? What other tasks call the number of digits is here that of the steps.

    Token ids: 0 … N − 1 the nodes, as start and as answer, N + N·a + b the edge from a to b, then PAD.
    """

    n_nodes: int = 24
    n_ends: int = 4
    """Nodes that point to themselves."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_ends", check_int("n_ends", self.n_ends, 2))
        object.__setattr__(self, "n_nodes", check_int("n_nodes", self.n_nodes, 2 * self.n_ends))

    @property
    def n_symbols(self) -> int:
        return self.n_nodes * (self.n_nodes + 1)

    @property
    def n_answers(self) -> int:
        return self.n_nodes

    @property
    def pad_id(self) -> int:
        return self.n_symbols

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + 1

    def n_chains(self, n_digits: int) -> int:
        """Of rows of tokens, of which few are graphs: too many to list."""
        return self.n_symbols ** (self.n_nodes + 1)

    def check_fit(self, model: ModelConfig, max_digits: int) -> None:
        """``ValueError`` for a model with other tokens, or for more steps than a path can have."""
        super().check_fit(model, self.n_nodes - 1)
        if max_digits > (most := self.n_nodes - self.n_ends):
            raise ValueError(f"n_digits={max_digits} is too long: paths of this task have at most {most} steps")

    def sample(self, count: int, n_digits: int, generator: torch.Generator, split: str) -> Tensor:
        """``count`` random graphs (B, T) whose start is ``n_digits`` steps from its end, from one side of the split."""
        count, n_digits = check_int("count", count, 0), check_int("n_digits", n_digits, 1, self.n_nodes - self.n_ends)
        check_choice("split", split, SPLITS)
        found = torch.zeros(0, self.n_nodes + 1, dtype=torch.int64, device=generator.device)
        while len(found) < count:
            graphs = self._draw(count, n_digits, generator)
            found = torch.cat([found, graphs[self.is_held_out(graphs) == (split == "held_out")]])
        return found[:count]

    def _draw(self, count: int, n_steps: int, generator: torch.Generator) -> Tensor:
        n, device = self.n_nodes, generator.device

        def shuffled(width: int) -> Tensor:
            return torch.rand(count, width, generator=generator, device=device).argsort(dim=1)

        row = shuffled(n)  # the nodes in a row; a path runs along it to the next end
        is_end = torch.zeros(count, n, dtype=torch.bool, device=device)
        is_end[:, [n_steps, n - 1]] = True
        others = shuffled(n - n_steps - 2)[:, : self.n_ends - 2] + n_steps + 1
        is_end.scatter_(1, others, True)
        edges = n + n * row + torch.where(is_end, row, row.roll(-1, dims=1))
        return torch.cat([edges.gather(1, shuffled(n)), row[:, :1]], dim=1)

    def encode(self, chains: Tensor) -> Batch:
        """(B, T) graphs → the batch that asks where they end. ``ValueError`` for what is no graph."""
        chains, n = self._checked(chains), self.n_nodes
        sources = (chains[:, :-1] // n - 1).sort(dim=1).values
        one_each = sources.shape[1] == n and (sources == torch.arange(n, device=chains.device)).all()
        if not one_each or (chains[:, -1] >= n).any():
            raise ValueError(f"a graph is one edge for each of {n} nodes, and then the node to start from")
        follows = torch.zeros(len(chains), n, dtype=torch.int64, device=chains.device)
        edges, node = chains[:, :-1] - n, chains[:, -1]
        follows.scatter_(1, edges // n, edges % n)
        n_steps = torch.zeros_like(node)
        for _ in range(n):
            after = follows.gather(1, node.unsqueeze(1)).squeeze(1)
            n_steps += after != node
            node = after
        return Batch(chains, torch.full_like(node, chains.shape[1] - 1), node, n_steps)

    def answer(self, chains: Tensor) -> Tensor:
        """(B, T) graphs → (B,) the node at the end."""
        return self.encode(chains).answers
