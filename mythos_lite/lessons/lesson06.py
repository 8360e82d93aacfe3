"""Exercises of lesson 6, digit chains modulo 7: from the prediction to the recurrent network inside the loop."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from mythos_lite.config import ModelConfig
from mythos_lite.lessons.exercise import Exercise, difference, fitting_hint, is_number, same
from mythos_lite.model.attention import attention_context
from mythos_lite.model.loop import RecurrentDepthTransformer
from mythos_lite.task.chains import Batch, ChainTask, make_generator
from mythos_lite.task.loss import answer_logits
from mythos_lite.training.trainer import build_model

# ---------------------------------------------------------------- what the notebook defines too


def answer_loss(model: RecurrentDepthTransformer, batch: Batch, n_loops: int) -> Tensor:
    """Cross-entropy of the answers at EQ after the last of ``n_loops`` loops, mean over the batch."""
    *_, last = model.loop(batch.token_ids, n_loops)
    logits = answer_logits(model, last.output, batch.answer_positions)
    return F.cross_entropy(logits, batch.answers)


def encode(model: RecurrentDepthTransformer, ids: Tensor) -> Tensor:
    """Token ids (B, T) → e (B, T, D): embedding and prelude."""
    return model.encode(ids, attention_context(model.config, ids.shape[1], None, ids.device))


def core_call(model: RecurrentDepthTransformer, h: Tensor, e: Tensor) -> Tensor:
    """One loop: states h and inputs e (B, T, D) of neighbouring positions → the next states."""
    return model.loop_map(h, e, 0, attention_context(model.config, h.shape[1], None, h.device))[0]


# ---------------------------------------------------------------- what the checks ask with


@functools.cache
def _small_model() -> RecurrentDepthTransformer:
    """An untrained model with large weights, so that its answers change from loop to loop."""
    config = dataclasses.replace(ModelConfig(), d_model=16, n_heads=2, n_kv_heads=2, d_ff=32, initializer_range=0.6)
    return build_model(config, 6)


def _copy(model: RecurrentDepthTransformer) -> RecurrentDepthTransformer:
    twin = RecurrentDepthTransformer(model.config)
    twin.load_state_dict(model.state_dict())
    return twin


@functools.cache
def _trained_model() -> RecurrentDepthTransformer:
    return RecurrentDepthTransformer.from_pretrained("mod7")


def _chains(count: int, shortest: int, longest: int, seed: int = 0) -> Batch:
    return ChainTask().batch(count, shortest, longest, make_generator(6, seed))


def _handed(batch: Batch) -> Batch:
    return Batch(*(tensor.clone() for tensor in batch))


@contextlib.contextmanager
def _counted(model: RecurrentDepthTransformer) -> Iterator[list[int]]:
    """Within, how many positions each call of the core was given."""
    widths: list[int] = []
    hook = model.core[0].register_forward_hook(lambda module, inputs, output: widths.append(inputs[0].shape[1]))
    try:
        yield widths
    finally:
        hook.remove()


# ---------------------------------------------------------------- 6.1


def expected_accuracy(lengths, n_loops):
    """Mean accuracy over these lengths if chains within reach are right and the others guessed."""
    accuracies = []
    for n_digits in lengths:
        # The first digit stands n positions before EQ. Prelude and coda carry it over one each, every loop over one.
        needed = max(1, n_digits - 2)
        accuracies.append(1.0 if n_loops >= needed else 1 / 7)
    return sum(accuracies) / len(accuracies)


def _fault_in_expected_accuracy(answer: Callable) -> str | None:
    cases = (
        *(
            ((6, 7, 8), 4),
            ((6, 7, 8), 1),
            ((6, 7, 8), 6),
            ((2, 3, 4, 5), 2),
            ((2, 3, 4, 5), 1),
            ((16,), 128),
            ((1,), 1),
        ),
        *(((8,), 5), ((8,), 6), ((6, 8), 4)),
    )
    found = [answer(lengths, n_loops) for lengths, n_loops in cases]
    for got, (lengths, n_loops) in zip(found, cases, strict=True):
        if fault := difference(got, expected_accuracy(lengths, n_loops)):
            where = f"for lengths {list(lengths)} at {n_loops} loops: {fault}"
            if is_number(got) and got > 1:
                return f"{where}; an accuracy is a share: divide by the number of lengths"
            hint = fitting_hint(_EXPECTED_SUSPECTS, cases, found)
            return f"{where}; {hint}" if hint else where
    return None


def _share(needed: Callable[[int], int], guess: float = 1 / 7) -> Callable:
    return lambda lengths, n_loops: sum(1.0 if n_loops >= needed(n) else guess for n in lengths) / len(lengths)


_EXPECTED_SUSPECTS = {
    "a chain out of reach is not always wrong: a guess is right once in seven": _share(lambda n: n - 2, 0.0),
    "exactly as many loops as needed are enough: >=, not >": lambda lengths, n_loops: (
        sum(1.0 if n_loops > max(1, n - 2) else 1 / 7 for n in lengths) / len(lengths)
    ),
    "prelude and coda carry the first digit too": _share(lambda n: n),
    "both prelude and coda carry the first digit, over one position each": _share(lambda n: n - 1),
    "EQ stands n positions after the first digit, not n − 1": _share(lambda n: n - 3),
    "each length counts by itself: the longest need not be within reach": lambda lengths, n_loops: (
        1.0 if n_loops >= max(lengths) - 2 else 1 / 7
    ),
}


# ---------------------------------------------------------------- 6.2


def training_step(model, optimizer, batch, loss_of):
    """One step along the gradient of loss_of(model, batch, 4), clipped to norm 1; returns the loss."""
    loss = loss_of(model, batch, 4)
    # The gradient of this batch alone, never longer than 1, moves the weights.
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _fault_in_step_loss(answer: Callable) -> str | None:
    batch, model = _chains(32, 2, 5), _copy(_small_model())
    wanted = {n: answer_loss(model, batch, n).item() for n in (1, 2, 3, 4, 5, 8)}
    got = answer(model, torch.optim.SGD(model.parameters(), lr=0.1), _handed(batch), answer_loss)
    if got is None:
        return "it returns nothing: hand back the loss, for the log"
    if fault := difference(got, wanted[4], 1e-4):
        other = next((n for n, loss in wanted.items() if n != 4 and same(got, loss, 1e-4)), None)
        return f"the loss after {other} loops, not after four" if other else f"the loss that it returns: {fault}"
    raw = answer.raw(model, torch.optim.SGD(model.parameters(), lr=0.1), _handed(batch), answer_loss)
    if isinstance(raw, Tensor) and raw.requires_grad:
        return "it returns a tensor with its whole graph, which a log would keep in memory: return loss.item()"
    return None


def _flat_loss(model: RecurrentDepthTransformer, batch: Batch, n_loops: int) -> Tensor:
    """Another loss, whose gradient is far shorter than 1: the cross-entropy of answers that are one too large."""
    return 1e-3 * answer_loss(model, batch._replace(answers=(batch.answers + 1) % 7), n_loops)


def _steps(step: Callable, count: int, loss_of: Callable = answer_loss, lr: float = 0.1) -> Tensor:
    """All weights after a few steps of plain gradient descent, which a gradient of the wrong length leads elsewhere."""
    model = _copy(_small_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for i in range(count):
        step(model, optimizer, _chains(32, 2, 5, i), loss_of)
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def _step_with(*, zero: bool = True, clip: str = "before", twice: bool = False, fixed: bool = False) -> Callable:
    def step(model, optimizer, batch, loss_of) -> None:
        loss = (answer_loss if fixed else loss_of)(model, batch, 4)
        if zero:
            optimizer.zero_grad()
        loss.backward()
        if clip == "before":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if clip == "value":
            torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
        if clip == "to one":
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf)
            for weight in model.parameters():
                weight.grad /= norm
        optimizer.step()
        if twice:
            optimizer.step()

    return step


_STEP_SUSPECTS = {
    "the gradients of earlier batches are still there: optimizer.zero_grad() before loss.backward()": (
        _step_with(zero=False)
    ),
    "the gradient must be clipped to norm 1 after backward() and before step()": _step_with(clip="never"),
    "clip the norm of the whole gradient, not its entries": _step_with(clip="value"),
    "the optimiser made two steps": _step_with(twice=True),
    "it takes the gradient of another loss than `loss_of`": _step_with(fixed=True),
    "a gradient shorter than 1 stays as it is": _step_with(clip="to one"),
}


def _fault_in_weights(answer: Callable) -> str | None:
    for count, loss_of, lr in ((1, answer_loss, 0.1), (3, answer_loss, 0.1), (2, _flat_loss, 1.0)):
        got, wanted = _steps(answer, count, loss_of, lr), _steps(training_step, count, loss_of, lr)
        if same(got, _steps(training_step, 0), 1e-9):
            return "the weights have not moved: optimizer.step() moves them, after loss.backward()"
        if fault := difference(got, wanted, 1e-5):
            hints = (said for said, step in _STEP_SUSPECTS.items() if same(got, _steps(step, count, loss_of, lr), 1e-5))
            hint, of_it = (
                next(hints, ""),
                " along another loss, with a short gradient," if loss_of is _flat_loss else "",
            )
            return f"after {count} step{'s' * (count > 1)}{of_it} the weights: {fault}" + (f"; {hint}" if hint else "")
    return None


# ---------------------------------------------------------------- 6.3


@torch.no_grad()
def sweep(model, batch, n_loops):
    """Accuracy after each of the loops 1 … n_loops (n_loops,), in a single pass over them."""
    accuracies = []
    for turn in model.loop(batch.token_ids, n_loops):
        # On its way to n_loops loops the state passes through every smaller count: read it out there.
        logits = answer_logits(model, turn.output, batch.answer_positions)
        right = logits.argmax(dim=-1) == batch.answers
        accuracies.append(right.float().mean())
    return torch.stack(accuracies)


def _fault_in_sweep_shape(answer: Callable) -> str | None:
    for n_loops in (5, 1):
        got = answer(_small_model(), _handed(_chains(8, 3, 3)), n_loops)
        if not isinstance(got, Tensor) or got.shape != (n_loops,):
            kind = f"of shape {tuple(got.shape)}" if isinstance(got, Tensor) else repr(got)
            return f"for n_loops={n_loops} the answer is {kind}; one accuracy for each loop count, ({n_loops},), is due"
    return None


def _fault_in_sweep_values(answer: Callable) -> str | None:
    cases = [(_small_model(), _chains(60, 2, 6), 6), (_trained_model(), _chains(50, 2, 9, 1), 9)]
    found = [answer(model, _handed(batch), n_loops) for model, batch, n_loops in cases]
    for got, (model, batch, n_loops) in zip(found, cases, strict=True):
        if fault := difference(got, sweep(model, batch, n_loops)):
            hint = fitting_hint(_SWEEP_SUSPECTS, cases, found)
            return f"on a batch of chains of several lengths {fault}" + (f"; {hint}" if hint else "")
    return None


@torch.no_grad()
def _swept(
    model: RecurrentDepthTransformer, batch: Batch, n_loops: int, *, first: int = 1, at: int | None = None
) -> Tensor:
    states = [encode(model, batch.token_ids), *(turn.output for turn in model.loop(batch.token_ids, n_loops + 1))]
    positions = batch.answer_positions if at is None else torch.full_like(batch.answers, at % states[0].shape[1])
    answers = [answer_logits(model, h, positions).argmax(dim=-1) for h in states[first : first + n_loops]]
    return torch.stack([(one == batch.answers).float().mean() for one in answers])


_SWEEP_SUSPECTS = {
    "the longest chain's EQ stands last, the others' do not: read at batch.answer_positions": functools.partial(
        _swept, at=-1
    ),
    "the first entry is the accuracy after one loop, not before the first": functools.partial(_swept, first=0),
    "the first entry is the accuracy after one loop, not after two": functools.partial(_swept, first=2),
    "an accuracy is a share: divide by the number of chains": lambda model, batch, n: (
        sweep(model, batch, n) * len(batch.answers)
    ),
    "these are shares of wrong answers": lambda model, batch, n: 1 - sweep(model, batch, n),
}


def _fault_in_sweep_passes(answer: Callable) -> str | None:
    with _counted(_small_model()) as widths:
        answer(_small_model(), _handed(_chains(8, 3, 3)), 6)
    if len(widths) != 6:
        return f"for six loop counts the core ran {len(widths)} times; one pass of six loops has all of the states"
    return None


# ---------------------------------------------------------------- 6.4


def plot_scaling(curves, expected, title):
    """Figure of accuracy against loops: curves (name → accuracies (L,)), and the expected one (L,)."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for (name, accuracies), marker in zip(curves.items(), "os^Dv", strict=False):
        axes.plot(range(1, len(accuracies) + 1), accuracies, marker=marker, markersize=4, label=name)
    axes.plot(range(1, len(expected) + 1), expected, color="gray", linestyle="--", label="predicted")
    axes.axhline(1 / 7, color="gray", linestyle=":", label="guessing")
    axes.set(xlabel="loops at inference", ylabel="accuracy", ylim=(0, 1.05), title=title)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := [2**k for k in range(len(expected).bit_length())], ticks)
    axes.legend(frameon=False)
    return figure


_CURVES = {"short": [0.125, 0.5, 1.0, 1.0, 1.0], "long": [0.25, 0.125, 0.375, 0.625, 0.75]}
_EXPECTED, _TITLE = [0.0625, 0.1875, 0.4375, 0.9375, 0.9375], "more loops, longer chains"


@contextlib.contextmanager
def _drawn(answer: Callable) -> Iterator[object]:
    """What an answer draws of the example; no figure of it is left open, to be shown a second time."""
    before = set(plt.get_fignums())
    curves = {name: torch.tensor(values) for name, values in _CURVES.items()}
    try:
        yield answer(curves, list(_EXPECTED), _TITLE)
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def _series(figure: Figure) -> list[tuple[np.ndarray, np.ndarray]]:
    """x and y of everything that is drawn as a line or as points."""
    lines = [line.get_data() for axes in figure.axes for line in axes.lines]
    points = [found.get_offsets().T for axes in figure.axes for found in axes.collections if len(found.get_offsets())]
    return [(np.asarray(x, dtype=float), np.asarray(y, dtype=float)) for x, y in [*lines, *points]]


def _fault_in_line(figure: Figure, what: str, values: Sequence[float]) -> str | None:
    drawn = [x for x, y in _series(figure) if y.shape == (len(values),) and np.allclose(y, values, atol=1e-5)]
    if not drawn:
        return f"no line has the accuracies of {what}"
    loops = np.arange(1, len(values) + 1)
    if not any(np.allclose(x, loops) for x in drawn):
        return f"{what} is drawn at x = {drawn[0][0]:g} … {drawn[0][-1]:g}; its first entry is that of 1 loop"
    return None


def _labelled(figure: Figure, name: str) -> list[np.ndarray]:
    """The heights of what is drawn under a name of its own."""
    lines = [(line.get_label(), line.get_ydata()) for axes in figure.axes for line in axes.lines]
    points = [(one.get_label(), one.get_offsets()[:, 1]) for axes in figure.axes for one in axes.collections]
    return [np.asarray(y, dtype=float) for label, y in [*lines, *points] if str(label) == name]


def _fault_in_curves(answer: Callable) -> str | None:
    with _drawn(answer) as figure:
        if not isinstance(figure, Figure):
            return f"it returns {type(figure).__name__}; return the figure that plt.subplots made"
        for name, values in _CURVES.items():
            if fault := _fault_in_line(figure, f'"{name}"', values):
                return fault
            for heights in _labelled(figure, name):
                if heights.shape != (len(values),) or not np.allclose(heights, values, atol=1e-5):
                    return f'the line with the label "{name}" shows other accuracies than curves["{name}"]'
    return None


def _fault_in_overlay(answer: Callable) -> str | None:
    with _drawn(answer) as figure:
        return _fault_in_line(figure, "the expected curve", _EXPECTED)


def _fault_in_labels(answer: Callable) -> str | None:
    with _drawn(answer) as figure:
        titles = [figure.get_suptitle(), *(axes.get_title(loc) for axes in figure.axes for loc in ("center", "left"))]
        if not any(_TITLE in title for title in titles):
            return "it does not have the title that it is given"
        if not all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes[:1]):
            return "say on both axes what they count"
        texts = [text.get_text() for axes in figure.axes for text in axes.texts]
        legends = [legend for legend in [*(axes.get_legend() for axes in figure.axes), *figure.legends] if legend]
        texts += [text.get_text() for legend in legends for text in legend.get_texts()]
        if missing := [name for name in _CURVES if not any(name in text for text in texts)]:
            return f'nobody can tell which line is "{missing[0]}": give each its label, and the figure a legend'
    return None


# ---------------------------------------------------------------- 6.5


def loss_from_needed(model, batch, n_loops):
    """Cross-entropy at EQ: per chain the mean over loops from the needed one on; mean over chains."""
    needed = batch.n_digits - 2
    total, count = 0.0, 0
    for turn in model.loop(batch.token_ids, n_loops):
        logits = answer_logits(model, turn.output, batch.answer_positions)
        losses = F.cross_entropy(logits, batch.answers, reduction="none")  # (B,)
        # Before the needed loop a chain could only guess: there its loss does not count.
        counts = turn.loop >= needed
        total = total + losses * counts
        count = count + counts
    return (total / count).mean()


_LOSS_CASES = ((40, 2, 5, 4), (40, 1, 5, 4), (1, 4, 4, 4), (30, 5, 8, 7))


def _loss_cases() -> list[tuple]:
    return [
        (_small_model(), _chains(count, low, high, i), loops) for i, (count, low, high, loops) in enumerate(_LOSS_CASES)
    ]


def _fault_in_needed_values(answer: Callable) -> str | None:
    cases = _loss_cases()
    found = [answer(model, _handed(batch), n_loops) for model, batch, n_loops in cases]
    for got, (model, batch, n_loops), (count, low, high, _) in zip(found, cases, _LOSS_CASES, strict=True):
        if fault := difference(got, loss_from_needed(model, batch, n_loops), 1e-4):
            where = f"for {count} chain{'s' * (count > 1)} of {low} to {high} digits, {n_loops} loops: {fault}"
            if isinstance(got, float) and math.isnan(got):
                return (
                    f"{where}; for some chain no loop counts, and 0 is divided by 0: "
                    "does it run n_loops loops, or always four?"
                )
            hint = fitting_hint(_LOSS_SUSPECTS, cases, found, 1e-4)
            return f"{where}; {hint}" if hint else where
    return None


@torch.no_grad()
def _loss_with(
    model: RecurrentDepthTransformer, batch: Batch, n_loops: int, *, earlier: int = 2, pooled: bool = False,
    only_there: bool = False, summed: bool = False,
) -> Tensor:  # fmt: skip
    """The loss in a way that is nearly right."""
    turns = list(model.loop(batch.token_ids, n_loops))
    logits = [answer_logits(model, turn.output, batch.answer_positions) for turn in turns]
    losses = torch.stack([F.cross_entropy(one, batch.answers, reduction="none") for one in logits])  # (L, B)
    loops, needed = torch.arange(1, n_loops + 1).unsqueeze(1), (batch.n_digits - earlier).clamp(1, n_loops)
    counts = loops == needed if only_there else loops >= needed
    if pooled:
        return (losses * counts).sum() / counts.sum()
    return ((losses * counts).sum(dim=0) / (1 if summed else counts.sum(dim=0))).mean()


_LOSS_SUSPECTS = {
    "that is the loss after the last loop alone": lambda model, batch, n: answer_loss(model, batch, n),
    "the loops before the needed one count too; they must not": functools.partial(_loss_with, earlier=99),
    "it begins one loop too late: from n_digits − 2 on, that one too": functools.partial(_loss_with, earlier=1),
    "it begins one loop too early: n digits need n_digits − 2": functools.partial(_loss_with, earlier=3),
    "it begins at loop n_digits, but prelude and coda carry the news too": functools.partial(_loss_with, earlier=0),
    "first the mean over each chain's own loops, then over chains: else short chains weigh more": functools.partial(
        _loss_with, pooled=True
    ),
    "only the needed loop counts in it; those after it should too": functools.partial(_loss_with, only_there=True),
    "divide each chain's sum by the number of its loops": functools.partial(_loss_with, summed=True),
    "that is the sum over chains; the mean is asked for": lambda model, batch, n: (
        loss_from_needed(model, batch, n) * len(batch.answers)
    ),
}


def _fault_in_needed_gradient(answer: Callable) -> str | None:
    for model, batch, n_loops in _loss_cases()[:2]:
        loss = answer.raw(model, _handed(batch), n_loops)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            return "the loss carries no gradient: stay with tensors, without .item(), .detach() or no_grad"
        weights = list(model.parameters())
        got = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        wanted = torch.autograd.grad(loss_from_needed(model, batch, n_loops), weights)
        if fault := difference(*(torch.cat([g.flatten() for g in one]) for one in (got, wanted)), 1e-3):
            return f"the gradient by the weights: {fault}; is part of the loss detached?"
    return None


# ---------------------------------------------------------------- 6.6


def fit_probe(states, sums):
    """States (N, D) and sums 0 … 6 (N,) → weights (D + 1, 7) of the linear probe that fits them best."""
    x = torch.cat([states, torch.ones(len(states), 1)], dim=1).double()  # a 1 after the state: the probe's bias
    y = F.one_hot(sums, 7).double()
    # Least squares. A small number on the diagonal helps where channels are equal.
    gram = x.T @ x + 1e-3 * torch.eye(x.shape[1], dtype=torch.double)
    return torch.linalg.solve(gram, x.T @ y).float()


_EQUAL_CHANNELS = (
    'add a little to the diagonal, or use torch.linalg.lstsq(x, y, driver="gelsd"); '
    "the default driver may go wrong where columns are equal"
)


def _with_one(states: Tensor) -> Tensor:
    return torch.cat([states, torch.ones(len(states), 1)], dim=1)


def _probe_case(width: int, n_classes: int, equal: bool = False) -> tuple[Tensor, Tensor]:
    """Noisy states that hold a sum on each side of the corner; two channels may be equal."""
    generator = torch.Generator().manual_seed(width)
    sums = torch.randint(n_classes, (400,), generator=generator)
    states = torch.randn(7, width, generator=generator)[sums] + 0.7 * torch.randn(400, width, generator=generator) + 1
    if equal:
        states[:, 1] = states[:, 0]
        states[:, 2] = 1.0
    return states, sums


def _fitted(answer: Callable, states: Tensor, sums: Tensor) -> Tensor | str:
    try:
        return answer(states.clone(), sums.clone())
    except torch.linalg.LinAlgError:
        return f"where two channels are equal it finds no solution: {_EQUAL_CHANNELS}"


def _fault_in_probe_shape(answer: Callable) -> str | None:
    for width, n_classes in ((5, 7), (12, 4)):
        got = _fitted(answer, *_probe_case(width, n_classes))
        if isinstance(got, str):
            return got
        if isinstance(got, Tensor) and got.shape == (width, 7):
            return f"its shape is {tuple(got.shape)}; a 1 is to follow each state, which makes it {(width + 1, 7)}"
        if not isinstance(got, Tensor) or got.shape != (width + 1, 7):
            found = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            hint = "one column for each of the seven sums, also if not all of them occur"
            return f"for states of width {width} its shape is {found}, and {(width + 1, 7)} is asked for: {hint}"
    return None


def _fault_in_probe_values(answer: Callable) -> str | None:
    for width, n_classes, equal in ((5, 7, False), (12, 4, False), (6, 7, True)):
        states, sums = _probe_case(width, n_classes, equal)
        got = _fitted(answer, states, sums)
        if isinstance(got, str):
            return got
        x, y = _with_one(states), F.one_hot(sums, 7).float()
        best, error = ((x @ fit_probe(states, sums) - y).pow(2).mean(), (x @ got.float() - y).pow(2).mean())
        if not error <= 1.02 * best + 1e-5:
            where = f"its squared error is {error:.4g}, and {best:.4g} can be had"
            moved = x @ got.float().roll(-1, dims=0)
            if (moved - y).pow(2).mean() <= 1.02 * best + 1e-5:
                return f"{where}; the 1 comes after the state, not before it"
            if equal:
                return f"where two channels are equal {where}; {_EQUAL_CHANNELS}"
            return f"{where}; is it fitted to one column per sum, 1 where it is the sum and 0 elsewhere?"
    return None


# ---------------------------------------------------------------- 6.7


@torch.no_grad()
def swapped_answers(model, ids, other_ids, position, n_loops):
    """Answers (B,) to ids (B, T) while the state at one position is held at that of other_ids (B, T)."""
    *_, last = model.loop(other_ids, n_loops)
    theirs = last.state[:, position]
    h = e = encode(model, ids)
    for _ in range(n_loops):
        h = core_call(model, h, e)
        h[:, position] = theirs  # in every loop, since the core writes its own state there again
    return model.read_out(h)[:, -1].argmax(dim=-1)


def _swap_case(
    n_digits: int, position: int, seed: int, n_loops: int, *, same_digit: bool = True, trained: bool = True
) -> tuple:
    """Chains and others, which have the same digit at ``position`` or any, and other digits before it."""
    task, generator = ChainTask(), make_generator(6, 10 + seed)
    own, others = (task.sample(60, n_digits, generator, "train") for _ in range(2))
    if same_digit:
        others[:, position - 1] = own[:, position - 1]
    model = _trained_model() if trained else _small_model()
    return model, task.encode(own).token_ids, task.encode(others).token_ids, position, n_loops


def _fault_in_swapped(answer: Callable) -> str | None:
    # Given too few loops, and by a model that has learned nothing, the answers are no sums of the digits: whoever adds
    # digits, splices tokens, runs other loops or swaps at another time answers otherwise.
    cases = [  # short runs first: they tell most wrong rules apart
        _swap_case(8, 5, 3, 3),
        _swap_case(8, 5, 4, 4),
        _swap_case(8, 8, 6, 3, trained=False),
        _swap_case(8, 5, 0, 16),
        _swap_case(6, 2, 1, 12, same_digit=False),
        _swap_case(8, 3, 2, 16),
        _swap_case(8, 8, 5, 16),
    ]
    found = []
    for model, ids, others, position, n_loops in cases:
        found.append(answer(model, ids.clone(), others.clone(), position, n_loops))
    for got, case in zip(found, cases, strict=True):
        # Held from before the first call on, or from after it: both are a way to hold it.
        wanted = swapped_answers(*case)
        if not same(got, wanted) and same(got, throughout := _swap_with(*case, swap="throughout")):
            wanted = throughout
        if isinstance(got, Tensor) and got.shape == (*wanted.shape, case[0].config.vocab_size):
            return "these are logits: an answer is the token with the largest"
        fault = difference(got, wanted)
        if isinstance(got, Tensor) and got.shape == wanted.shape:
            wrong = (got != wanted).double().mean().item()
            fault = f"{wrong:.0%} of the answers differ" if wrong > 0.02 else None
        if fault:
            hint = fitting_hint(_SWAP_SUSPECTS, cases, found)
            where = f"with the state at position {case[3]} of {case[1].shape[1]} held for {case[4]} loops: {fault}"
            return f"{where}; {hint}" if hint else where
    return None


@torch.no_grad()
def _swap_with(
    model: RecurrentDepthTransformer, ids: Tensor, other_ids: Tensor, position: int, n_loops: int, *,
    swap: str = "after", shift: int = 0, read_theirs: bool = False, unfinished: bool = False, e_of: str = "own",
) -> Tensor:  # fmt: skip
    """A swap that is nearly right."""
    at = position + shift
    turns = list(model.loop(other_ids, n_loops))
    e = encode(model, ids)
    if e_of != "own":
        e[:, at] = (turns[-1].state if e_of == "state" else encode(model, other_ids))[:, at]
    h = e.clone()
    for i, turn in enumerate(turns, start=1):
        theirs = turn.state if unfinished else turns[-1].state
        if swap in ("before", "throughout") or (swap == "start" and i == 1):
            h[:, at] = theirs[:, at]
        h = core_call(model, h, e)
        if swap in ("after", "throughout") or (swap == "first" and i == 1) or (swap == "last" and i == n_loops):
            h[:, at] = theirs[:, at]
    return model.read_out(turns[-1].state if read_theirs else h)[:, -1].argmax(dim=-1)


def _spliced(
    model: RecurrentDepthTransformer, ids: Tensor, other_ids: Tensor, position: int, n_loops: int
) -> Tensor:  # fmt: skip
    both = torch.cat([other_ids[:, : position + 1], ids[:, position + 1 :]], dim=1)
    return model(both, n_loops=n_loops).logits[:, -1].argmax(dim=-1).detach()


def _added(
    model: RecurrentDepthTransformer, ids: Tensor, other_ids: Tensor, position: int, n_loops: int
) -> Tensor:  # fmt: skip
    return (other_ids[:, 1 : position + 1].sum(dim=1) + ids[:, position + 1 : -1].sum(dim=1)) % 7


_SWAP_SUSPECTS = {
    "these are the answers to ids as they are: the state of other_ids is put nowhere": functools.partial(
        _swap_with, swap="never"
    ),
    "hold the state after every call of the core: swapped after the first alone, it is written over by the next": (
        functools.partial(_swap_with, swap="first")
    ),
    "hold the state after every call of the core: swapped before the first alone, it is written over by it": (
        functools.partial(_swap_with, swap="start")
    ),
    "hold the state after every call of the core: swapped after the last alone, it travels nowhere": functools.partial(
        _swap_with, swap="last"
    ),
    "it holds the position before": functools.partial(_swap_with, shift=-1),
    "it holds the position after; position 0 is START's": functools.partial(_swap_with, shift=1),
    "these are the answers to other_ids": functools.partial(_swap_with, read_theirs=True),
    "the state is held as the others have it after n_loops loops, finished, in the first loop too": functools.partial(
        _swap_with, unfinished=True
    ),
    "write the state back after every call, the last one too, not before it": functools.partial(
        _swap_with, swap="before"
    ),
    "e is overwritten where only the state should be: begin with `h = e.clone()`": functools.partial(
        _swap_with, e_of="state"
    ),
    "the state alone is exchanged; e stays that of ids": functools.partial(_swap_with, e_of="others"),
    "that adds digits up and never asks the model, which may answer otherwise": _added,
    "that exchanges tokens; exchange the state": _spliced,
    "n_loops says how many loops to run, for both chains": lambda model, ids, others, position, n_loops: (
        swapped_answers(model, ids, others, position, 32)
    ),
}


# ---------------------------------------------------------------- 6.8


@torch.no_grad()
def left_to_right(model, ids, calls_per_token=1):
    """Logits (B, T, V): position by position, each state made once from the frozen one before it."""
    e = encode(model, ids)
    states = []
    for p in range(ids.shape[1]):
        inputs = e[:, max(0, p - 1) : p + 1]  # (B, 2, D); of the first position (B, 1, D)
        state = e[:, p]  # where the loop starts
        for _ in range(calls_per_token):
            # The core sees two positions: the one before with its finished state, and this one.
            seen = torch.stack([*states[-1:], state], dim=1)
            state = core_call(model, seen, inputs)[:, -1]
        states.append(state)
    return model.read_out(torch.stack(states, dim=1))


def _run_cases() -> list[tuple]:
    task = ChainTask()
    return [
        (_small_model(), task.encode(task.sample(count, n, make_generator(6, n), "train")).token_ids)
        for count, n in ((4, 6), (1, 9), (3, 1))
    ]


def _fault_in_run_shape(answer: Callable) -> str | None:
    model, ids = _run_cases()[0]
    got, wanted = answer(model, ids.clone()), (*ids.shape, model.config.vocab_size)
    if not isinstance(got, Tensor) or got.shape != wanted:
        found = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        return f"its shape is {found}; logits at every position are asked for, {wanted}: model.read_out gives them"
    return None


def _fault_in_run_values(answer: Callable) -> str | None:
    cases = _run_cases()
    found = [answer(model, ids.clone()) for model, ids in cases]
    for got, (model, ids) in zip(found, cases, strict=True):
        if fault := difference(got, left_to_right(model, ids), 1e-3):
            hint = fitting_hint(_RUN_SUSPECTS, cases, found, 1e-3)
            return f"for ids of shape {tuple(ids.shape)} {fault}" + (f"; {hint}" if hint else "")
    return None


@torch.no_grad()
def _run_with(
    model: RecurrentDepthTransformer, ids: Tensor, *, before: str = "frozen", start: str = "e", excerpt: bool = False,
    apart: bool = False,
) -> Tensor:  # fmt: skip
    """A run from left to right that is nearly right."""
    e, states = encode(model, ids), []
    for p in range(ids.shape[1]):
        past = {"frozen": states[-1:], "input": [e[:, p - 1]] if p else [], "none": []}[before]
        inputs = e[:, p - len(past) : p + 1]
        if excerpt:
            inputs = encode(model, ids[:, p - len(past) : p + 1])
        now = {"e": inputs[:, -1], "zero": 0 * e[:, p], "before": (states or [e[:, p]])[-1]}[start]
        states.append(core_call(model, torch.stack([*past, now], dim=1), inputs)[:, -1])
    if apart:
        return torch.cat([model.read_out(state.unsqueeze(1)) for state in states], dim=1)
    return model.read_out(torch.stack(states, dim=1))


@torch.no_grad()
def _run_in_one_tensor(model: RecurrentDepthTransformer, ids: Tensor, *, keep: bool, copy: bool) -> Tensor:
    """A run that writes the states into one tensor: over e itself, or over what was finished before."""
    e = encode(model, ids)
    h = e.clone() if copy else e
    for p in range(ids.shape[1]):
        near = slice(max(0, p - 1), p + 1)
        new = core_call(model, h[:, near], e[:, near])
        if keep:
            h[:, p] = new[:, -1]
        else:
            h[:, near] = new
    return model.read_out(h)


_RUN_SUSPECTS: Mapping[str, Callable] = {
    "the position before must show its finished state, not its e: nothing is handed on so, "
    "as in one turn of the loop": functools.partial(_run_with, before="input"),
    "each position is run by itself; it must see the one before it": functools.partial(_run_with, before="none"),
    "a state starts from e, as in the loop, not from zero": functools.partial(_run_with, start="zero"),
    "a state starts from its own e, not from the state before it": functools.partial(_run_with, start="before"),
    "the state before is made again: keep it as it was finished": functools.partial(
        _run_in_one_tensor, keep=False, copy=True
    ),
    "e is overwritten while it is still read: `e.clone()`": functools.partial(
        _run_in_one_tensor, keep=True, copy=False
    ),
    "the prelude runs once, on the whole chain, not on two positions at a time": functools.partial(
        _run_with, excerpt=True
    ),
    "the coda reads all states out together, at the end: each position sees the one before it there too": (
        functools.partial(_run_with, apart=True)
    ),
}


def _fault_in_run_calls(answer: Callable) -> str | None:
    model, ids = _run_cases()[1]
    for calls in (1, 3):
        with _counted(model) as widths:
            got = answer(model, ids.clone(), calls)
        if len(widths) != calls * ids.shape[1]:
            due = f"{calls} for each of {ids.shape[1]} tokens, {calls * ids.shape[1]}, are due"
            return f"with calls_per_token={calls} the core is called {len(widths)} times; {due}"
        if max(widths) > 2:
            return f"the core is given {max(widths)} positions at once; the window shows two, and so many are enough"
        if fault := difference(got, left_to_right(model, ids, calls), 1e-3):
            return f"with calls_per_token={calls} {fault}; only after its last call is a state handed on"
    return None


# ---------------------------------------------------------------- 6.9


@torch.no_grad()
def double_reach(model, ids, n_loops):
    """Logits (L, B, T, V), one row per loop. In loop t, from 0, each position sees itself and the one 2^t back."""
    h = encode(model, ids)
    logits = []
    for t in range(n_loops):
        # Where there is none so far back, START takes its place: position 0.
        partner = (torch.arange(ids.shape[1]) - 2**t).clamp(min=0)
        pairs = torch.stack([h[:, partner], h], dim=2).flatten(0, 1)  # (B·T, 2, D), the earlier one first
        # This model's core gets the state alone, so it does not matter what is handed over as e.
        new = core_call(model, pairs, pairs)[:, -1].unflatten(0, ids.shape)
        h = torch.cat([h[:, :1], new[:, 1:]], dim=1)  # START stays what it is
        logits.append(model.read_out(h))
    return torch.stack(logits)


@functools.cache
def _small_doubling() -> RecurrentDepthTransformer:
    config = dataclasses.replace(_small_model().config, dilated=True, injection="none")
    return build_model(dataclasses.replace(config, n_prelude_layers=0, n_coda_layers=0), 6)


def _reach_cases() -> list[tuple]:
    task = ChainTask()
    return [
        (_small_doubling(), task.encode(task.sample(count, n, make_generator(9, n), "train")).token_ids, n_loops)
        for count, n, n_loops in ((3, 7, 4), (1, 12, 5), (2, 1, 3))
    ]


def _fault_in_reach_shape(answer: Callable) -> str | None:
    model, ids, n_loops = _reach_cases()[0]
    got, wanted = answer(model, ids.clone(), n_loops), (n_loops, *ids.shape, model.config.vocab_size)
    if not isinstance(got, Tensor) or got.shape != wanted:
        found = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        return f"its shape is {found}; the logits of every loop are asked for, one after the other, {wanted}"
    return None


def _fault_in_reach_values(answer: Callable) -> str | None:
    cases = _reach_cases()
    found = [answer(model, ids.clone(), n_loops) for model, ids, n_loops in cases]
    for got, case in zip(found, cases, strict=True):
        if fault := difference(got, double_reach(*case), 1e-3):
            hint = fitting_hint(_REACH_SUSPECTS, cases, found, 1e-3)
            return f"for ids of shape {tuple(case[1].shape)} {fault}" + (f"; {hint}" if hint else "")
    return None


@torch.no_grad()
def _reach_with(
    model: RecurrentDepthTransformer, ids: Tensor, n_loops: int, *, back: Callable = lambda t: 2**t, lowest: int = 0,
    states: str = "h", order: int = 1, kept: int = -1, early: bool = False, held: bool = True,
) -> Tensor:  # fmt: skip
    """Reaches that are nearly right."""
    h = e = encode(model, ids)
    logits = []
    for t in range(n_loops):
        behind = torch.arange(ids.shape[1]) - back(t)
        partner = behind.clamp(min=0) if lowest == 0 else behind.where(behind >= 0, torch.arange(ids.shape[1]))
        partner = behind % ids.shape[1] if lowest < 0 else partner
        both = [(h if states in ("h", "own e") else e)[:, partner], h if states in ("h", "partner e") else e][::order]
        pairs = torch.stack(both, dim=2).flatten(0, 1)
        before, h = h, core_call(model, pairs, pairs)[:, kept].unflatten(0, ids.shape)
        h = torch.cat([e[:, :1], h[:, 1:]], dim=1) if held else h
        logits.append(model.read_out(before if early else h))
    return torch.stack(logits)


_REACH_SUSPECTS: Mapping[str, Callable] = {
    "these are the logits with every position seeing the one right before it, in each loop": functools.partial(
        _reach_with, back=lambda t: 1
    ),
    "in loop t, counted from 0, the partner stands 2ᵗ back; here it is 2·t": functools.partial(
        _reach_with, back=lambda t: 2 * t
    ),
    "loops are counted from 0: in the first the partner stands one position back, not two": functools.partial(
        _reach_with, back=lambda t: 2 ** (t + 1)
    ),
    "a negative index counts from the end of the chain; where there is no partner, take position 0, START": (
        functools.partial(_reach_with, lowest=-1)
    ),
    "where there is no partner, START takes its place (position 0), not the position itself": functools.partial(
        _reach_with, lowest=1
    ),
    "the partner shows its state of the loop before, h, not e": functools.partial(_reach_with, states="partner e"),
    "the own state is that of the loop before, h, not e": functools.partial(_reach_with, states="own e"),
    "every loop starts from e again: put what the core returns into h": functools.partial(_reach_with, states="both e"),
    "read out after the step, not before it": functools.partial(_reach_with, early=True),
    "START keeps its state: put h[:, :1] in its place after every loop": functools.partial(_reach_with, held=False),
    "the earlier position comes first in a pair": functools.partial(_reach_with, order=-1),
    "of what the core returns, the second of each pair is the new state": functools.partial(_reach_with, kept=0),
}


EXERCISES = (
    Exercise(
        number="6.1", title="the curve to expect", minutes=10, difficulty=2,
        stages={"values": _fault_in_expected_accuracy}, solution=expected_accuracy,
    ),
    Exercise(
        number="6.2", title="a training step", minutes=5, difficulty=1,
        stages={"loss": _fault_in_step_loss, "weights": _fault_in_weights}, solution=training_step,
    ),
    Exercise(
        number="6.3", title="all loop counts in one pass", minutes=15, difficulty=2,
        stages={"shape": _fault_in_sweep_shape, "values": _fault_in_sweep_values, "one pass": _fault_in_sweep_passes},
        solution=sweep,
    ),
    Exercise(
        number="6.4", title="the plot", minutes=10, difficulty=1,
        stages={"curves": _fault_in_curves, "prediction": _fault_in_overlay, "labels": _fault_in_labels},
        solution=plot_scaling,
    ),
    Exercise(
        number="6.5", title="the loss from the needed loop on", minutes=15, difficulty=2,
        stages={"values": _fault_in_needed_values, "gradient": _fault_in_needed_gradient}, solution=loss_from_needed,
    ),
    Exercise(
        number="6.6", title="a probe for the running sum", minutes=10, difficulty=2,
        stages={"shape": _fault_in_probe_shape, "values": _fault_in_probe_values}, solution=fit_probe,
    ),
    Exercise(
        number="6.7", title="swap a state", minutes=15, difficulty=2,
        stages={"values": _fault_in_swapped}, solution=swapped_answers,
    ),
    Exercise(
        number="6.8", title="from left to right", minutes=30, difficulty=3,
        stages={"shape": _fault_in_run_shape, "values": _fault_in_run_values, "calls": _fault_in_run_calls},
        solution=left_to_right,
    ),
    Exercise(
        number="6.9", title="twice as far in every loop", minutes=15, difficulty=2,
        stages={"shape": _fault_in_reach_shape, "values": _fault_in_reach_values}, solution=double_reach,
    ),
)  # fmt: skip
