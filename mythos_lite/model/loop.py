"""The recurrent-depth transformer: prelude → the shared core, n times → coda.

========================  ==============================================================
name here                 symbol and source
========================  ==============================================================
``e``                     e, the input encoded once by the prelude; Huginn (Geiping et al.
                          2025, §3), Parcae (Prairie et al. 2026)
``h``                     h_t (Huginn: s_t), the state after t loops; h_0 is noise in
                          Huginn and Parcae, here e
``loop_map``              one loop: h_t = tanh(injection of h_{t−1} and e into R)
``depth_lora_*``          per-loop low-rank change of R's output; Bae et al. 2024
``loop_index_embedding``  sinusoid of the loop number on the first eighth of the channels
========================  ==============================================================

The tanh is not in these papers. It drives the channels of the state to ±1, where a small error shrinks instead of
adding up; saturation is what lets a recurrent network follow a finite automaton on sequences of any length (Omlin &
Giles 1996). ``state_activation="none"`` takes it out.

The last two are OpenMythos' and off by default. Deviation: its loop sinusoid has amplitude 1, far more than token
embeddings that start at .02; here it has the scale at which the embeddings start.

Shapes: B batch, T positions, D width, V vocabulary, L loops, E experts, k experts per token.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mythos_lite.checks import check_int, check_number
from mythos_lite.config import ModelConfig
from mythos_lite.files.checkpoint import CheckpointError, check_shapes, open_checkpoint, write_checkpoint
from mythos_lite.model.attention import AttentionContext, MultiHeadLatentAttention, attention_context
from mythos_lite.model.block import Block
from mythos_lite.model.cache import Cache, CacheKey
from mythos_lite.model.dilation import fold, unfold
from mythos_lite.model.halting import ActHalting, ActState, ActStep, answer_change, mixture
from mythos_lite.model.injection import Given, make_injection
from mythos_lite.model.layers import rms_norm
from mythos_lite.model.modes import Unfilled
from mythos_lite.model.moe import Routing, SparseMoE


class LoopStep(NamedTuple):
    """One turn of the loop."""

    loop: int  # number of loops done, from 1
    previous: Tensor  # (B, T, D) h_{t−1}; e at the first loop
    state: Tensor  # (B, T, D) h_t
    routing: Routing  # per core layer; empty without experts
    act: ActStep | None  # None without ACT

    @property
    def output(self) -> Tensor:
        """(B, T, D) what the coda reads if the loop ends here: the state, or ACT's weighted sum."""
        return output_of(self)

    @property
    def ponder_cost(self) -> Tensor | None:
        """(B, T) if the loop ends here; None without ACT."""
        return ponder_cost_of(self)

    def residual(self) -> Tensor:
        """(B, T) relative residual ‖h_t − h_{t−1}‖ / ‖h_t‖ (Huginn, Parcae), float32."""
        h, before = self.state.float(), self.previous.float()
        return (h - before).norm(dim=-1) / h.norm(dim=-1).clamp(min=1e-30)


def output_of(turn: LoopStep) -> Tensor:
    """``turn.output`` for the model itself: torch.compile of 2.9 reads no properties of named tuples."""
    return turn.state if turn.act is None else mixture(turn.act)


def ponder_cost_of(turn: LoopStep) -> Tensor | None:
    """``turn.ponder_cost``, likewise."""
    return None if turn.act is None else turn.act.updates + turn.act.remainder


class Trace(NamedTuple):
    """What happened in the loop, loop by loop."""

    states: Tensor  # (L, B, T, D) h_1 … h_L
    residuals: Tensor  # (L, B, T) ‖h_t − h_{t−1}‖ / ‖h_t‖
    logits: Tensor
    """(L, B, T, V) the read-out if the loop had ended there. With a cache, the coda still attends to earlier
    tokens as they were after their own last loop."""
    routing: tuple[Routing, ...]  # per loop


class ModelOutput(NamedTuple):
    """What ``forward`` returns."""

    logits: Tensor  # (B, T, V)
    n_loops: int  # loops that were run; fewer than asked for after an early exit
    ponder_cost: Tensor | None  # (B, T) loops used plus remainder, with n_loops as ACT's budget; None without ACT
    trace: Trace | None


class Generation(NamedTuple):
    """What ``generate`` returns with ``return_loops``."""

    token_ids: Tensor  # (B, T + new)
    loops_used: tuple[int, ...]  # loops run for the prompt and then for each new token but the last


class RecurrentDepthTransformer(nn.Module):
    """Causal language model whose depth is chosen at call time: ``model(token_ids, n_loops=8)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        with Unfilled():  # these weights are drawn once, by reset_parameters below
            self.prelude = nn.ModuleList(Block(config) for _ in range(config.n_prelude_layers))
            self.injection = make_injection(config)
            self.core = nn.ModuleList(Block(config, sparse=config.n_experts > 0) for _ in range(config.n_core_layers))
            self.coda = nn.ModuleList(Block(config) for _ in range(config.n_coda_layers))
        self.norm = rms_norm(config.d_model)
        self.halting = ActHalting(config.d_model) if config.halting == "act" else None
        if config.depth_lora_rank:
            self.depth_lora_down = nn.Linear(config.d_model, config.depth_lora_rank, bias=False)
            self.depth_lora_scale = nn.Parameter(torch.empty(config.n_loops, config.depth_lora_rank))
            self.depth_lora_up = nn.Linear(config.depth_lora_rank, config.d_model, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every initial value anew. Seed torch before building the model to repeat them."""
        std = self.config.initial_std
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.RMSNorm, MultiHeadLatentAttention, SparseMoE)):
                module.reset_parameters()
        nn.init.normal_(self.embedding.weight, std=std)
        self.injection.reset_parameters()
        if self.config.depth_lora_rank:
            nn.init.normal_(self.depth_lora_scale)
            nn.init.zeros_(self.depth_lora_up.weight)  # starts as no change at all

    # ---------------------------------------------------------------- the loop

    def loop(self, token_ids: Tensor, n_loops: int | None = None, cache: Cache | None = None) -> Iterator[LoopStep]:
        """Encode the tokens (B, T) once, then yield the state after each of ``n_loops`` loops.

        Raises:
            ValueError: as ``forward``, at the call; only tokens outside the vocabulary are found at the first turn.
        """
        n_loops = self.check_input(token_ids, n_loops, cache)
        return self.turns(token_ids, n_loops, self._context(token_ids, cache))

    def turns(self, token_ids: Tensor, n_loops: int, context: AttentionContext) -> Iterator[LoopStep]:
        """``loop`` for tokens that have been checked, in a context of the caller's."""
        act = ActState(self.config.act_threshold) if self.halting is not None else None
        h = e = self.encode(token_ids, context)
        given = self.injection.given(e)
        for t in range(n_loops):
            previous = h
            h, routing = self.loop_map(h, e, t, context, given)
            yield LoopStep(t + 1, previous, h, routing, None if act is None else act.update(self.halting(h), h))

    def loop_map(
        self, h: Tensor, e: Tensor, t: int, context: AttentionContext, given: Given | None = None
    ) -> tuple[Tensor, Routing]:
        """The loop map h_t → h_{t+1} (B, T, D), with the router's statistics per core layer.

        ``given`` is ``injection.given(e)``, for whoever calls it more than once.
        """
        given = self.injection.given(e) if given is None else given
        beside = self.injection.bypass(h, given)
        x = self.injection.drive(h, given, self._loop_signal(t, h))
        x, routing = self._run_core(x, t, context)
        h = beside + self._adapt(x, t)
        h = torch.tanh(h) if self.config.state_activation == "tanh" else h
        if self.config.dilated:  # what stands in for missing positions is the same in every loop
            h = torch.cat([e[:, :1], h[:, 1:]], dim=1)
        return h, routing

    def encode(self, token_ids: Tensor, context: AttentionContext) -> Tensor:
        """Embedding and prelude: (B, T) → e (B, T, D)."""
        try:
            e = self.embedding(token_ids)
        except IndexError as error:  # on a CPU, where a token outside the vocabulary is noticed without a check
            low, high = token_ids.min().item(), token_ids.max().item()
            outside, last = low if low < 0 else high, self.config.vocab_size - 1
            raise ValueError(f"token id {outside} is outside the vocabulary, 0 … {last}") from error
        return self._run_blocks("prelude", e, context)[0]

    def read_out(self, h: Tensor, context: AttentionContext | None = None, cache: Cache | None = None) -> Tensor:
        """Coda and head: state (B, T, D) → logits (B, T, V). With a cache it may be called after every loop.

        ``context`` is that of the tokens, if it is at hand; if not, it is made for them and ``cache``.
        """
        if context is None:
            context = attention_context(self.config, h.shape[1], cache, h.device)
        h, _ = self._run_blocks("coda", h, context)
        return nn.functional.linear(self.norm(h), self.embedding.weight[: self.config.output_size])

    def forward(
        self, token_ids: Tensor, *, n_loops: int | None = None, cache: Cache | None = None, trace: bool = False,
        exit_policy: object | None = None,
    ) -> ModelOutput:  # fmt: skip
        """Logits of the next token at every position.

        Args:
            token_ids: (B, T) int64; with a ``cache``, the tokens that follow those in it.
            n_loops: any number from 1; ``config.n_loops`` if not given. For ACT it is the budget.
            cache: remembers what these tokens' keys were. Tied to the loop count it was filled at.
            trace: also return every loop's state, residual, read-out and routing.
            exit_policy: a ``ConvergenceExit`` or another object with a method ``settled(changes)`` → bool.
                It is asked after each loop from the second on, and given the largest ``answer_change`` of any token
                but padding in each of these loops. If it has an ``every``, a whole number from 1, the answer is read
                out after every so many loops only, and changes are those from one read-out to the next.
                Where it says yes, the loop stops: the loops run so far become ACT's budget, and in a cache those that
                were skipped get the keys of the last one that was run.

        Raises:
            ValueError: for tokens outside the vocabulary (on a CPU; a GPU stops at them by itself), an empty or too
                long sequence, a loop count that is not a whole number from 1, a cache of another loop count or
                batch, padding together with a cache, an ``exit_policy`` without that method.
        """
        n_loops = self.check_input(token_ids, n_loops, cache, exit_policy)
        return self._forward(token_ids, n_loops, self._context(token_ids, cache), trace, exit_policy)

    def _forward(
        self, token_ids: Tensor, n_loops: int, context: AttentionContext, trace: bool, exit_policy: object | None
    ) -> ModelOutput:
        cache, counted = context.cache, context.counted
        turns, readouts, changes, before, logits = [], [], [], None, None
        every = check_int("exit_policy.every", getattr(exit_policy, "every", 1), 1)
        for turn in self.turns(token_ids, n_loops, context):
            asked = exit_policy is not None and turn.loop % every == 0
            logits = self.read_out(output_of(turn), context) if trace or asked else None
            if trace:
                turns.append(turn)
                readouts.append(logits)
            if asked and before is not None:
                change = answer_change(logits, before)
                changes.append((change if counted is None else change.where(counted, 0.0)).max().item())
                # A token cannot have settled before the tokens that it attends to had.
                if exit_policy.settled(changes) and (cache is None or turn.loop >= cache.loops_run):
                    break
            before = logits if asked else before
        if logits is None:
            logits = self.read_out(output_of(turn), context)
        if cache is not None:
            cache.advance(token_ids.shape[1], turn.loop)
        found = None
        if trace:
            states, residuals, routing = zip(*((t.state, t.residual(), t.routing) for t in turns), strict=True)
            found = Trace(torch.stack(states), torch.stack(residuals), torch.stack(readouts), routing)
        return ModelOutput(logits, turn.loop, ponder_cost_of(turn), found)

    # ---------------------------------------------------------------- generation

    @torch.no_grad()
    def generate(
        self, prompt_ids: Tensor, *, max_new_tokens: int = 16, n_loops: int | None = None, temperature: float = 0.0,
        top_k: int | None = None, eos_token_id: int | None = None, generator: torch.Generator | None = None,
        exit_policy: object | None = None, return_loops: bool = False,
    ) -> Tensor | Generation:  # fmt: skip
        """Continue the prompts (B, T) token by token: (B, T + new). A cache is kept, but not by a dilated window.

        ``temperature`` 0 takes the likeliest token; above it, tokens are drawn (from the ``top_k`` likeliest, if
        given) with ``generator``. It stops early once every sequence has produced ``eos_token_id``; a sequence that
        is done repeats it. With ``return_loops`` the loops that were run come back too.

        Raises:
            ValueError: as ``forward``, and for a prompt that holds padding (prompts of different lengths: one call
                each), a negative temperature, more tokens than fit, or a model whose logits are not finite.
        """
        max_new_tokens = check_int("max_new_tokens", max_new_tokens, 0)
        n_loops = self.check_input(prompt_ids, n_loops, None, exit_policy)
        self._check_unpadded(prompt_ids)
        self.check_length(n_tokens := prompt_ids.shape[1] + max_new_tokens)
        cache = None if self.config.dilated else Cache(n_tokens)
        if cache is not None:
            cache.begin(self.config, prompt_ids.shape[0], n_loops)
        temperature = check_number("temperature", temperature, 0.0)
        n_tokens = self.config.output_size or self.config.vocab_size
        top_k = None if top_k is None else check_int("top_k", top_k, 1, n_tokens)
        eos_token_id = None if eos_token_id is None else check_int("eos_token_id", eos_token_id, 0, n_tokens - 1)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator must be a torch.Generator or None, not {generator!r}")

        new, ids, loops = prompt_ids, prompt_ids, []
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for _ in range(max_new_tokens):
            read = ids if cache is None else new
            context = attention_context(self.config, read.shape[1], cache, read.device)  # padding that it makes counts
            out = self._forward(read, n_loops, context, False, exit_policy)
            loops.append(out.n_loops)
            if not torch.isfinite(out.logits[:, -1]).all():
                raise ValueError("the logits are not finite; the model's weights are damaged or too large")
            new = _pick(out.logits[:, -1], temperature, top_k, generator)
            if eos_token_id is not None:
                new = torch.where(done, eos_token_id, new)
                done = done | (new == eos_token_id)
            new = new.unsqueeze(1)
            ids = torch.cat([ids, new], dim=1)
            if done.all():
                break
        return Generation(ids, tuple(loops)) if return_loops else ids

    # ---------------------------------------------------------------- files

    def save_pretrained(self, folder: str | os.PathLike, **notes: object) -> Path:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, each whole or not at all.

        An error before both are on the disk leaves what was there. The weights carry the configuration and the notes,
        so that they are a whole checkpoint by themselves should the process end between the two files.

        ``notes`` (recipe, seed, …: what JSON can hold, NumPy's and torch's numbers too) are kept in ``config.json``.

        Raises:
            ValueError: for weights that are not finite, or not all float32, all bfloat16 or all float16; for notes that
                JSON cannot hold, such as NaN.
            OSError: for a folder that cannot be written, or into which another process is writing.
        """
        return write_checkpoint(folder, self.config, self.state_dict(), notes)

    @classmethod
    def from_pretrained(
        cls, folder_or_name: str | os.PathLike, *, device: str | torch.device = "cpu"
    ) -> RecurrentDepthTransformer:
        """Load a folder that ``save_pretrained`` wrote, or a checkpoint that ships with the package (``"mod7"``).

        The weights keep the type they were saved in. The model comes back in evaluation mode. Where ``config.json`` is
        missing, the configuration is the one that the weights carry; where it is of other weights, an error says so.

        Raises:
            CheckpointError: a ``ValueError`` that says what is wrong with the files.
        """
        found = open_checkpoint(folder_or_name)
        config = found.config
        if config.n_prelude_layers + config.n_core_layers + config.n_coda_layers > len(found.tensors):
            raise CheckpointError(f"{folder_or_name} has more layers in its configuration than weights")
        try:
            with torch.inference_mode(False), torch.device("meta"), Unfilled():  # which takes no memory
                model = cls(config)
        except (RuntimeError, TypeError, OverflowError) as error:  # sizes that no tensor can have
            raise CheckpointError(f"{folder_or_name} describes a model that cannot be built: {error}") from error
        check_shapes(found.tensors, model.state_dict(), where=str(folder_or_name))
        with torch.inference_mode(False):
            model.load_state_dict(found.tensors, assign=True)
        return model.to(device).eval()

    # ---------------------------------------------------------------- details

    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def check_input(
        self, token_ids: Tensor, n_loops: int | None, cache: Cache | None, exit_policy: object | None = None
    ) -> int:
        """Reject what cannot be run, before any work; return the loop count to run and prepare the cache for it."""
        n_loops = check_int("n_loops", self.config.n_loops if n_loops is None else n_loops, 1)
        ids_kind = token_ids.dtype if isinstance(token_ids, Tensor) else type(token_ids).__name__
        if ids_kind not in (torch.int64, torch.int32):
            raise ValueError(f"token_ids must be an int64 tensor of shape (B, T), not {ids_kind}")
        if token_ids.ndim != 2 or 0 in token_ids.shape:
            raise ValueError(f"token_ids must have shape (B, T) with B ≥ 1 and T ≥ 1, not {tuple(token_ids.shape)}")
        if token_ids.device != (device := self.embedding.weight.device):
            raise ValueError(f"token_ids are on {token_ids.device} and the model on {device}; move one of them")
        if exit_policy is not None and (isinstance(exit_policy, type) or not hasattr(exit_policy, "settled")):
            raise ValueError(f"exit_policy must have a method settled, like ConvergenceExit(), not be {exit_policy!r}")
        if cache is not None and not isinstance(cache, Cache):
            raise ValueError(f"cache must be a Cache or None, not {cache!r}")
        self.check_length(token_ids.shape[1] + (cache.length if cache is not None else 0))
        if cache is not None:
            if self.config.dilated:
                raise ValueError("a dilated window reads states of all earlier positions; such a model keeps no cache")
            self._check_unpadded(token_ids)
            cache.begin(self.config, token_ids.shape[0], n_loops)
        return n_loops

    def _check_unpadded(self, token_ids: Tensor) -> None:
        pad = self.config.pad_token_id
        if pad is not None and not torch.compiler.is_compiling() and (token_ids == pad).any():
            raise ValueError(
                f"the tokens hold padding (token {pad}), to which later ones would attend: run sequences of different "
                "lengths one by one"
            )

    def check_length(self, length: int) -> None:
        """Reject more tokens than ``max_seq_len``."""
        if length > self.config.max_seq_len:
            raise ValueError(f"{length} tokens are more than max_seq_len={self.config.max_seq_len} of this model")

    def _context(self, token_ids: Tensor, cache: Cache | None) -> AttentionContext:
        """The context of tokens that have been checked."""
        context = attention_context(self.config, token_ids.shape[1], cache, token_ids.device)
        # With a cache, the padding token can only be one that the model has generated, and counts like any other.
        pad = self.config.pad_token_id if cache is None else None
        return context if pad is None else context._replace(counted=token_ids != pad)

    def _run_blocks(self, stage: str, x: Tensor, context: AttentionContext, t: int = 0) -> tuple[Tensor, Routing]:
        """Prelude, core or coda: (B, T, D) → (B, T, D), with the statistics of every router."""
        routing = []
        for layer, block in enumerate(getattr(self, stage)):
            x, stats = block(x, context, CacheKey(stage, layer, t))
            if stats is not None:
                routing.append(stats)
        return x, tuple(routing)

    def _run_core(self, x: Tensor, t: int, context: AttentionContext) -> tuple[Tensor, Routing]:
        """The core of loop t: (B, T, D) → (B, T, D). With a dilated window, on positions windowᵗ apart."""
        if not self.config.dilated:
            return self._run_blocks("core", x, context, t)
        n_positions = x.shape[1]
        dilation = min(self.config.window**t, n_positions)  # that far apart, each stands alone behind the first
        x = fold(x, dilation)
        context = attention_context(self.config, x.shape[1], None, x.device)
        return unfold(self._run_blocks("core", x, context, t)[0], dilation, n_positions), ()

    def _loop_signal(self, t: int, h: Tensor) -> Tensor | float:
        """(D,) sinusoid of the loop number on the first 2·(D // 16) channels, zero on the others."""
        if not self.config.loop_index_embedding:
            return 0.0
        half = self.config.d_model // 16
        rates = 10_000.0 ** (-torch.arange(half, device=h.device, dtype=torch.float32) / half)
        signal = torch.cat([torch.sin(t * rates), torch.cos(t * rates)]) * self.config.initial_std
        return nn.functional.pad(signal, (0, self.config.d_model - 2 * half)).to(h.dtype)

    def _adapt(self, x: Tensor, t: int) -> Tensor:
        """The core's output (B, T, D), changed by the depth-wise LoRA if there is one."""
        if not self.config.depth_lora_rank:
            return x
        scale = self.depth_lora_scale[min(t, len(self.depth_lora_scale) - 1)]
        return x + self.depth_lora_up(self.depth_lora_down(x) * scale)


def _pick(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Next tokens (B,) from logits (B, V)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits, tokens = (logits, None) if top_k is None else logits.topk(top_k, dim=-1)
    # Subtracting the largest first keeps the quotient finite at the smallest temperatures.
    shares = ((logits.double() - logits.max(dim=-1, keepdim=True).values) / temperature).softmax(dim=-1)
    shares = shares if generator is None else shares.to(generator.device)
    drawn = torch.multinomial(shares, 1, generator=generator).to(logits.device)
    return (drawn if tokens is None else tokens.gather(1, drawn)).squeeze(1)
