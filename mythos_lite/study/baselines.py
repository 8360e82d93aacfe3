"""What one would use instead of a loop: a plain transformer, an LSTM, a GRU, an RNN.

=====================  ================================================================
name here              symbol and source
=====================  ================================================================
``"lstm"``, ``"gru"``  Hochreiter & Schmidhuber 1997; Cho et al. 2014
``"rnn"``              h_t = tanh(W x_t + U h_{t−1} + b); Elman 1990
``"tanh_rnn"``         h_t = tanh(h_{t−1} + SwiGLU(norm(h_{t−1} + x_t))): the looped
                       model's tanh over the feed-forward of its block, along the chain
                       instead of along the loops
``"convolution"``      a weight-tied convolution over state and input, iterated, with
                       *recall* of the input; Schwarzschild et al. 2021, Bansal et al. 2022
=====================  ================================================================

``train`` with the objective ``answer_loss`` gives them the batches, optimiser, schedule and average of weights of a
looped model with the same seed. Only the convolution has a loop count: it gets the looped model's.

Shapes: B batch, T positions, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mythos_lite.checks import check_choice, check_int
from mythos_lite.config import Config, ModelConfig, TrainConfig
from mythos_lite.model.attention import attention_context
from mythos_lite.model.block import Block
from mythos_lite.model.layers import SwiGLU, rms_norm
from mythos_lite.model.loop import LoopStep
from mythos_lite.task.chains import Batch, Task
from mythos_lite.training.trainer import initial_weights

KINDS = ("transformer", "lstm", "gru", "rnn", "tanh_rnn", "convolution")


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(Config):
    """Shape of a baseline. ``window`` is read by the transformer alone, ``d_ff`` by it and ``"tanh_rnn"``."""

    kind: str
    vocab_size: int = 10
    d_model: int = 64
    n_layers: int = 1
    d_ff: int = 0
    window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, KINDS)
        for field in ("vocab_size", "d_model", "n_layers"):
            check_int(field, getattr(self, field), 1)
        if self.kind in ("transformer", "tanh_rnn"):
            check_int("d_ff", self.d_ff, 1)
        elif self.d_ff:
            raise ValueError(f"d_ff={self.d_ff} is not read by kind={self.kind!r}; leave it out")
        if self.window is not None and self.kind != "transformer":
            raise ValueError(f"window={self.window} is not read by kind={self.kind!r}; leave it out")
        if self.n_layers > 1 and self.kind in ("tanh_rnn", "convolution"):
            raise ValueError(f"n_layers={self.n_layers} is not possible: kind={self.kind!r} has one layer")


class PlainTransformer(nn.Module):
    """Causal transformer of untied pre-norm blocks with rotary positions and a tied head."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks_config = ModelConfig(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_ff=config.d_ff,
            window=config.window,
            pad_token_id=None,
        )
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(self.blocks_config) for _ in range(config.n_layers))
        self.norm = rms_norm(config.d_model)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.blocks_config.initial_std)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, T) → logits (B, T, V)."""
        positions = attention_context(self.blocks_config, token_ids.shape[1], None, token_ids.device)
        x = self.embedding(token_ids)
        for block in self.blocks:
            x, _ = block(x, positions)
        return F.linear(self.norm(x), self.embedding.weight)


class TanhCells(nn.Module):
    """h_t = tanh(h_{t−1} + SwiGLU(norm(h_{t−1} + x_t))) from h_0 = 0; called as ``torch.nn.RNN`` is."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.norm = rms_norm(config.d_model)
        self.ffn = SwiGLU(config.d_model, config.d_ff)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) → the states (B, T, D), and the last one (B, D)."""
        h, states = torch.zeros_like(inputs[:, 0]), []
        for x in inputs.unbind(dim=1):
            h = torch.tanh(h + self.ffn(self.norm(h + x)))
            states.append(h)
        return torch.stack(states, dim=1), h


class RecurrentNetwork(nn.Module):
    """``torch.nn.LSTM``, ``GRU`` or ``RNN``, or ``TanhCells``, between an embedding and a head."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.kind == "tanh_rnn":
            self.cells = TanhCells(config)
        else:
            cells = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[config.kind]
            self.cells = cells(config.d_model, config.d_model, config.n_layers, batch_first=True)
        self.head = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, T) → logits (B, T, V)."""
        return self.head(self.cells(self.embedding(token_ids))[0])


class RecallConvolution(nn.Module):
    """h ← relu(u + W₂ relu(W₁ u)) with u = relu(conv₃[h, e]), as often as asked; e and the read-out are conv₃ too.

    Bansal et al. 2022, fig. 2, with one residual block. Deviation: the block's own convolutions have width 1 and not
    3, so that information moves by one position per iteration, as in the loop with a window of 2; here to either side.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config, width = config, config.d_model
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.project = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.recall = nn.Conv1d(2 * width, width, 3, padding=1, bias=False)
        self.up = nn.Conv1d(width, width, 1, bias=False)
        self.down = nn.Conv1d(width, width, 1, bias=False)
        self.read = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.head = nn.Linear(width, config.vocab_size)

    def forward(self, token_ids: Tensor, n_loops: int = 1) -> Tensor:
        """(B, T) → logits (B, T, V) after ``n_loops`` iterations."""
        # Padding, the last token of every task, is to be seen from its left no more than the end of a longer batch.
        real = (token_ids != self.config.vocab_size - 1).unsqueeze(1)
        h = e = F.relu(self.project(self.embedding(token_ids).transpose(1, 2) * real)) * real
        for _ in range(n_loops):
            u = F.relu(self.recall(torch.cat([h, e], dim=1)))
            h = F.relu(u + self.down(F.relu(self.up(u)))) * real
        return self.head(F.relu(self.read(h)).transpose(1, 2))


def build_baseline(config: BaselineConfig, seed: int) -> nn.Module:
    """A baseline whose initial weights depend on ``seed`` alone."""
    kinds = {"transformer": PlainTransformer, "convolution": RecallConvolution}
    with initial_weights(seed):
        return kinds.get(config.kind, RecurrentNetwork)(config)


def _answer_logits(model: nn.Module, batch: Batch, n_loops: int) -> Tensor:
    """(B, V) at EQ."""
    rows = torch.arange(len(batch.answers), device=batch.answers.device)
    loops = (n_loops,) if isinstance(model, RecallConvolution) else ()
    return model(batch.token_ids, *loops)[rows, batch.answer_positions]


def answer_loss(
    model: nn.Module, config: TrainConfig, batch: Batch, n_loops: int
) -> tuple[Tensor, Tensor, list[LoopStep]]:
    """Cross-entropy at EQ, after ``n_loops`` if there are any, and the logits there; an objective of ``train``."""
    logits = _answer_logits(model, batch, n_loops)
    return F.cross_entropy(logits, batch.answers), logits.detach(), []


@torch.no_grad()
def count_correct(model: nn.Module, task: Task, chains: Tensor, n_loops: int = 1) -> int:
    """How many of the chains (B, n) are answered correctly, after ``n_loops`` if the model has a loop."""
    model.eval()
    correct = 0
    for part in chains.split(500):
        batch = task.encode(part).to(next(model.parameters()).device)
        correct += int((_answer_logits(model, batch, n_loops).argmax(-1) == batch.answers).sum())
    return correct
