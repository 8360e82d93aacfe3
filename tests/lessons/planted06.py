"""Lesson 6: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from mythos_lite.lessons import lesson06
from mythos_lite.lessons.lesson06 import answer_loss, core_call, encode
from mythos_lite.task.loss import answer_logits

# ---------------------------------------------------------------- 6.2


def step_with(model, optimizer, batch, loss_of, *, loops=4, zero=True, clip=clip_grad_norm_, late=False, steps=1):
    loss = loss_of(model, batch, loops)
    if zero:
        optimizer.zero_grad()
    loss.backward()
    if clip and not late:
        clip(model.parameters(), 1.0)
    for _ in range(steps):
        optimizer.step()
    if clip and late:
        clip(model.parameters(), 1.0)
    return loss


def scale_to_one(weights, norm):
    weights = list(weights)
    length = torch.sqrt(sum(w.grad.pow(2).sum() for w in weights))
    for w in weights:
        w.grad *= norm / length


def planted_step(**wrong):
    return lambda model, optimizer, batch, loss_of: step_with(model, optimizer, batch, loss_of, **wrong).item()


def step_by_hand(model, optimizer, batch, loss_of):
    """Gradients from autograd.grad, clipped by hand."""
    loss = loss_of(model, batch, 4)
    weights = list(model.parameters())
    gradients = torch.autograd.grad(loss, weights)
    norm = torch.sqrt(sum(g.pow(2).sum() for g in gradients))
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient / max(1.0, norm.item())
    optimizer.step()
    return np.float32(loss.detach().numpy())


# ---------------------------------------------------------------- 6.3


def sweep_with(model, batch, n_loops, read=None, share=True):
    found = []
    with torch.no_grad():
        for turn in model.loop(batch.token_ids, n_loops):
            logits = model.read_out(turn.output)
            at = batch.answer_positions if read is None else torch.full_like(batch.answers, read)
            right = logits[torch.arange(len(at)), at].argmax(-1) == batch.answers
            found.append((right.double().mean() if share else right.sum()).item())
    return found


def separate_runs(model, batch, n_loops):
    rows = torch.arange(len(batch.answers))
    with torch.no_grad():
        answers = [
            model(batch.token_ids, n_loops=t).logits[rows, batch.answer_positions].argmax(-1)
            for t in range(1, n_loops + 1)
        ]
    return torch.stack([(answer == batch.answers).float().mean() for answer in answers])


# ---------------------------------------------------------------- 6.4


def plot_with(curves, expected, title, *, first=1, legend=True, overlay=True, axis_labels=True, names=True):
    figure, axes = plt.subplots()
    for name, accuracies in curves.items():
        axes.plot(range(first, first + len(accuracies)), accuracies, label=name if names else None)
    if overlay:
        axes.plot(range(1, 1 + len(expected)), expected, "k--", label="predicted")
    axes.set_title(title)
    if axis_labels:
        axes.set(xlabel="loops", ylabel="accuracy")
    if legend:
        axes.legend()
    return figure


def plot_with_exchanged_names(curves, expected, title):
    return plot_with(dict(zip(reversed(curves), curves.values(), strict=True)), expected, title)


def plot_points_with_exchanged_names(curves, expected, title):
    figure, axes = plt.subplots()
    for name, accuracies in zip(reversed(curves), curves.values(), strict=True):
        axes.scatter(range(1, 1 + len(accuracies)), accuracies, label=name)
    axes.plot(range(1, 1 + len(expected)), expected, label="predicted")
    axes.set(xlabel="loops", ylabel="accuracy", title=title)
    axes.legend()
    return figure


def plot_points(curves, expected, title):
    """Points in place of lines, names beside them, the title over the figure."""
    figure = plt.figure()
    axes = figure.add_subplot()
    loops = np.arange(1, len(expected) + 1)
    for name, accuracies in curves.items():
        axes.scatter(loops, [float(one) for one in accuracies])
        axes.text(loops[-1], float(accuracies[-1]), name)
    axes.step(loops, expected, where="mid")
    axes.set_xlabel("loops")
    axes.set_ylabel("accuracy")
    figure.suptitle(title)
    return figure


def plot_with_pyplot(curves, expected, title):
    figure = plt.figure()
    loops = list(range(1, len(expected) + 1))
    plt.plot(loops, expected, ":", label="what I predicted")
    for name in curves:
        plt.semilogx(loops, curves[name].tolist(), marker=".", label=f"{name} chains")
    plt.xlabel("loops")
    plt.ylabel("share right")
    plt.title(f"Mine: {title}")
    plt.legend(loc="lower right")
    return figure


# ---------------------------------------------------------------- 6.5


def losses_of(model, batch, n_loops):
    """(L, B) cross-entropies at EQ after each loop."""
    logits = [
        answer_logits(model, turn.output, batch.answer_positions) for turn in model.loop(batch.token_ids, n_loops)
    ]
    return torch.stack([F.cross_entropy(one, batch.answers, reduction="none") for one in logits])


def loss_with(model, batch, n_loops, *, back=2, pooled=False, divide=True):
    losses, loops = losses_of(model, batch, n_loops), torch.arange(1, n_loops + 1)[:, None]
    counts = (loops >= (batch.n_digits - back).clamp(max=n_loops)).float()
    if pooled:
        return (losses * counts).sum() / counts.sum()
    per_chain = (losses * counts).sum(0) / (counts.sum(0) if divide else 1)
    return per_chain.mean()


def loss_chain_by_chain(model, batch, n_loops):
    losses = losses_of(model, batch, n_loops)
    own = [losses[max(1, n - 2) - 1 :, i].mean() for i, n in enumerate(batch.n_digits.tolist())]
    return sum(own) / len(own)


def loss_four_loops(model, batch):
    losses = losses_of(model, batch, 4)
    counts = torch.arange(1, 5)[:, None] >= batch.n_digits - 2
    return ((losses * counts).sum(0) / counts.sum(0)).mean()


def half_detached(model, batch, n_loops):
    losses = losses_of(model, batch, n_loops)
    losses = torch.cat([losses[:-1].detach(), losses[-1:]])
    counts = torch.arange(1, n_loops + 1)[:, None] >= batch.n_digits - 2
    return ((losses * counts).sum(0) / counts.sum(0)).mean()


# ---------------------------------------------------------------- 6.6


def with_one(states, first=False):
    ones = torch.ones(len(states), 1)
    return torch.cat([ones, states] if first else [states, ones], dim=1).double()


def least_squares(x, y, ridge=1e-4):
    return torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


# ---------------------------------------------------------------- 6.7


def swap_with(model, ids, other_ids, position, n_loops, when="always", place=lambda p: p, unfinished=False):
    at = place(position)
    with torch.no_grad():
        states = [turn.state[:, at] for turn in model.loop(other_ids, n_loops)]
        e = encode(model, ids)
        h = e.clone()
        for t in range(n_loops):
            theirs = states[t if unfinished else -1]
            if when == "before":
                h[:, at] = theirs
            h = core_call(model, h, e)
            if when == "always" or (when != "before" and t == when % n_loops):
                h[:, at] = theirs
        return model.read_out(h)[:, -1]


def swap_in_e(model, ids, other_ids, position, n_loops, of_state=True):
    """Begins by writing the others' state, or their input, into e."""
    with torch.no_grad():
        *_, last = model.loop(other_ids, n_loops)
        e = encode(model, ids)
        e[:, position] = (last.state if of_state else encode(model, other_ids))[:, position]
        h = e
        for _ in range(n_loops):
            h = core_call(model, h, e)
            h[:, position] = last.state[:, position]
        return model.read_out(h)[:, -1].argmax(-1)


def swap_throughout(model, ids, other_ids, position, n_loops, later=True):
    """Swapped before the first call, and held ``later`` too."""
    with torch.no_grad():
        *_, last = model.loop(other_ids, n_loops)
        e = encode(model, ids)
        h = e.clone()
        h[:, position] = last.state[:, position]
        for _ in range(n_loops):
            h = core_call(model, h, e)
            if later:
                h[:, position] = last.state[:, position]
        return model.read_out(h)[:, -1].argmax(-1)


def swap_at_the_start(model, ids, other_ids, position, n_loops):
    return swap_throughout(model, ids, other_ids, position, n_loops, later=False)


def swap_with_masks(model, ids, other_ids, position, n_loops):
    """Without changing a tensor in place."""
    with torch.no_grad():
        theirs = list(model.loop(other_ids, n_loops))[-1].state
        here = (torch.arange(ids.shape[1]) == position)[None, :, None]
        h = e = encode(model, ids)
        for _ in range(n_loops):
            h = torch.where(here, theirs, core_call(model, h, e))
        return model.read_out(h)[:, -1].argmax(-1).tolist()


# ---------------------------------------------------------------- 6.8


def run_with(model, ids, calls=1, *, before="frozen", zero=False, keep_first=False, excerpt=False, apart=False):
    with torch.no_grad():
        e, states = encode(model, ids), []
        for p in range(ids.shape[1]):
            past = {"frozen": states[-1:], "input": [e[:, p - 1]] if p else [], "none": []}[before]
            near = slice(p - len(past), p + 1)
            inputs = encode(model, ids[:, near]) if excerpt else e[:, near]
            state = 0 * e[:, p] if zero else inputs[:, -1]
            for _ in range(calls):
                out = core_call(model, torch.stack([*past, state], dim=1), inputs)
                if keep_first and past:
                    past = [out[:, 0]]
                state = out[:, -1]
            states.append(state)
        if apart:
            return torch.cat([model.read_out(state[:, None]) for state in states], dim=1)
        return model.read_out(torch.stack(states, dim=1))


def run_changing_the_past_for_good(model, ids, calls_per_token=1):
    with torch.no_grad():
        e = encode(model, ids)
        h = e.clone()
        for p in range(ids.shape[1]):
            near = slice(max(p - 1, 0), p + 1)
            for _ in range(calls_per_token):
                h[:, near] = core_call(model, h[:, near], e[:, near])
        return model.read_out(h)


def run_in_e_itself(model, ids, calls_per_token=1):
    with torch.no_grad():
        e = encode(model, ids)
        for p in range(ids.shape[1]):
            near = slice(max(p - 1, 0), p + 1)
            for _ in range(calls_per_token):
                e[:, p] = core_call(model, e[:, near], e[:, near])[:, -1]
        return model.read_out(e)


def run_in_place(model, ids, calls_per_token=1):
    """States written into one tensor."""
    with torch.no_grad():
        e = encode(model, ids)
        h = e.clone()
        for p in range(ids.shape[1]):
            near = slice(max(p - 1, 0), p + 1)
            for _ in range(calls_per_token):
                h[:, p] = core_call(model, h[:, near], e[:, near])[:, -1]
        return model.read_out(h).numpy()


def run_on_prefixes(model, ids, calls_per_token=1):
    """Right values, from ever longer prefixes."""
    with torch.no_grad():
        e = encode(model, ids)
        h = e.clone()
        for p in range(ids.shape[1]):
            for _ in range(calls_per_token):
                h[:, p] = core_call(model, h[:, : p + 1], e[:, : p + 1])[:, -1]
        return model.read_out(h)


def run_changing_the_past(model, ids, calls_per_token=1):
    return run_with(model, ids, calls_per_token, keep_first=True)


def run_last_row(model, ids, calls_per_token=1):
    return lesson06.left_to_right(model, ids, calls_per_token)[:, -1]


@torch.no_grad()
def reach_with(model, ids, n_loops, *, partner_of, merge=None, held=True):
    """Reaches with partners by a rule of their own."""
    h, logits = encode(model, ids), []
    positions = torch.arange(ids.shape[1])
    for t in range(n_loops):
        pairs = torch.stack([h[:, partner_of(positions, t)], h], dim=2).flatten(0, 1)
        new = core_call(model, pairs, pairs)[:, -1].unflatten(0, ids.shape)
        h = torch.cat([h[:, :1], new[:, 1:]], dim=1) if held else new
        logits.append(model.read_out(h))
    return torch.stack(logits) if merge is None else merge(logits)


def back(positions, t):
    return (positions - 2**t).clamp(min=0)


def reach_position_by_position(model, ids, n_loops):
    """Right values, one position after the other, as an array."""
    with torch.no_grad():
        h, logits = encode(model, ids), []
        for t in range(n_loops):
            new = [h[:, 0]]
            for p in range(1, ids.shape[1]):
                pair = torch.stack([h[:, max(0, p - 2**t)], h[:, p]], dim=1)
                new.append(core_call(model, pair, pair)[:, 1])
            h = torch.stack(new, dim=1)
            logits.append(model.read_out(h).numpy())
        return np.stack(logits)


def reach_by_the_package(model, ids, n_loops):
    """Right values: the model's own loop."""
    with torch.no_grad():
        return model(ids, n_loops=n_loops, trace=True).trace.logits


WRONG = {
    "6.1": [
        (lambda lengths, n_loops: sum(n_loops >= max(1, n - 2) for n in lengths) / len(lengths), "once in seven"),
        (lambda lengths, n_loops: sum(1 if n_loops >= max(1, n - 2) else 1 / 7 for n in lengths), "a share"),
        (lambda lengths, n_loops: 1.0 if n_loops >= max(lengths) - 2 else 1 / 7, "each length counts"),
        (lambda lengths, n_loops: np.mean([1.0 if n_loops >= n else 1 / 7 for n in lengths]), "prelude and coda carry"),
        (lambda lengths, n_loops: np.mean([1.0 if n_loops >= n - 1 else 1 / 7 for n in lengths]), "both prelude"),
        (lambda lengths, n_loops: np.mean([1.0 if n_loops >= n - 3 else 1 / 7 for n in lengths]), "n positions after"),
        (lambda lengths, n_loops: np.mean([1.0 if n_loops > max(1, n - 2) else 1 / 7 for n in lengths]), ">="),
        (lambda lengths, n_loops: [1.0 if n_loops >= n - 2 else 1 / 7 for n in lengths], "a number"),
    ],
    "6.2": [
        (planted_step(zero=False), "zero_grad"),
        (planted_step(clip=None), "clipped to norm 1"),
        (planted_step(late=True), "after backward() and before step()"),
        (planted_step(clip=clip_grad_value_), "not its entries"),
        (planted_step(steps=0), "have not moved"),
        (planted_step(steps=2), "two steps"),
        (lambda model, optimizer, batch, loss_of: step_with(model, optimizer, batch, answer_loss).item(), "`loss_of`"),
        (planted_step(clip=scale_to_one), "shorter than 1"),
        (step_with, "whole graph"),
        (planted_step(loops=1), "after 1 loop"),
        (planted_step(loops=5), "after 5 loops"),
        (lambda model, optimizer, batch, loss_of: -planted_step()(model, optimizer, batch, loss_of), "should be"),
        (lambda model, optimizer, batch, loss_of: None, "returns nothing"),
    ],
    "6.3": [
        (lambda model, batch, n_loops: sweep_with(model, batch, n_loops, read=-1), "answer_positions"),
        (lambda model, batch, n_loops: sweep_with(model, batch, n_loops, share=False), "divide by the number"),
        (lambda model, batch, n_loops: sweep_with(model, batch, n_loops)[-1], "one accuracy for each"),
        (lambda model, batch, n_loops: sweep_with(model, batch, n_loops + 1)[1:], "not after two"),
        (lambda model, batch, n_loops: 1 - lesson06.sweep(model, batch, n_loops), "wrong answers"),
        (separate_runs, "one pass"),
        (
            lambda model, batch, n_loops: lesson06._swept(model, batch, n_loops, first=0),
            "not before the first",
        ),
    ],
    "6.4": [
        (lambda curves, expected, title: plot_with(curves, expected, title, first=0), "that of 1 loop"),
        (lambda curves, expected, title: plot_with(curves, expected, title, overlay=False), "the expected curve"),
        (lambda curves, expected, title: plot_with(curves, expected, title, legend=False), "legend"),
        (lambda curves, expected, title: plot_with(curves, expected, title, names=False), "which line"),
        (lambda curves, expected, title: plot_with(curves, expected, title, axis_labels=False), "axes"),
        (lambda curves, expected, title: plot_with(curves, expected, "my plot"), "title"),
        (plot_with_exchanged_names, 'with the label "short"'),
        (plot_points_with_exchanged_names, 'with the label "short"'),
        (lambda curves, expected, title: plot_with(curves, expected, title).axes[0], "return the figure"),
        (lambda curves, expected, title: plot_with(dict([*curves.items()][:1]), expected, title), '"long"'),
        (lambda curves, expected, title: plt.close(plot_with(curves, expected, title)), "NoneType"),
    ],
    "6.5": [
        (answer_loss, "the last loop alone"),
        (lambda model, batch, n_loops: losses_of(model, batch, n_loops).mean(), "before the needed one"),
        (lambda model, batch, n_loops: loss_with(model, batch, n_loops, pooled=True), "short chains weigh more"),
        (lambda model, batch, n_loops: loss_with(model, batch, n_loops, back=1), "one loop too late"),
        (lambda model, batch, n_loops: loss_with(model, batch, n_loops, back=3), "one loop too early"),
        (lambda model, batch, n_loops: loss_with(model, batch, n_loops, back=0), "at loop n_digits"),
        (lambda model, batch, n_loops: loss_with(model, batch, n_loops, divide=False), "number of its loops"),
        (lambda model, batch, n_loops: loss_with(model, batch, n_loops) * len(batch.answers), "sum over chains"),
        (lambda model, batch, n_loops: loss_with(model, batch, n_loops).item(), "no gradient"),
        (half_detached, "detached"),
        (lambda model, batch, n_loops: loss_four_loops(model, batch), "always four"),
    ],
    "6.6": [
        (lambda states, sums: least_squares(states.double(), F.one_hot(sums, 7).double()), "a 1 is to follow"),
        (lambda states, sums: least_squares(with_one(states), sums.double()[:, None]), "one column for each"),
        (lambda states, sums: least_squares(with_one(states), F.one_hot(sums).double()), "also if not all"),
        (lambda states, sums: least_squares(with_one(states, True), F.one_hot(sums, 7).double()), "not before it"),
        (lambda states, sums: least_squares(with_one(states), F.one_hot(sums, 7).double(), 0.0), "gelsd"),
        (lambda states, sums: least_squares(with_one(states), F.one_hot(sums, 7).double(), 1e3), "squared error"),
        (lambda states, sums: torch.zeros(states.shape[1] + 1, 7), "squared error"),
    ],
    "6.7": [
        (lambda *given: swap_with(*given, when=0).argmax(-1), "after the first alone"),
        (lambda *given: swap_with(*given, when=-1).argmax(-1), "after the last alone"),
        (lambda *given: swap_with(*given, place=lambda p: p - 1).argmax(-1), "the position before"),
        (lambda *given: swap_with(*given, place=lambda p: p + 1).argmax(-1), "the position after"),
        (lambda *given: swap_with(*given), "logits"),
        (lambda *given: swap_with(*given, when="before").argmax(-1), "not before it"),
        (swap_at_the_start, "before the first alone"),
        (swap_in_e, "e.clone()"),
        (lambda *given: swap_in_e(*given, of_state=False), "e stays that of ids"),
        (lambda *given: swap_with(*given, unfinished=True).argmax(-1), "finished"),
        (lambda model, ids, others, p, n: lesson06.swapped_answers(model, ids, others, p, 32), "how many loops"),
        (
            lambda model, ids, others, p, n: (others[:, 1 : p + 1].sum(1) + ids[:, p + 1 : -1].sum(1)) % 7,
            "never asks the model",
        ),
        (
            lambda model, ids, others, p, n: (
                model(torch.cat([others[:, : p + 1], ids[:, p + 1 :]], 1), n_loops=n).logits[:, -1].argmax(-1)
            ),
            "exchanges tokens",
        ),
        (lambda model, ids, others, p, n: model(others, n_loops=n).logits[:, -1].argmax(-1), "other_ids"),
        (lambda model, ids, others, p, n: model(ids, n_loops=n).logits[:, -1].argmax(-1), "as they are"),
    ],
    "6.8": [
        (lambda model, ids, calls=1: run_with(model, ids, calls, before="input"), "finished state"),
        (lambda model, ids, calls=1: run_with(model, ids, calls, before="none"), "run by itself"),
        (lambda model, ids, calls=1: run_with(model, ids, calls, zero=True), "not from zero"),
        (lambda model, ids, calls=1: model(ids, n_loops=1).logits, "one turn of the loop"),
        (lambda model, ids, calls=1: run_with(model, ids, 2 * calls), "off by"),
        (lambda model, ids, calls=1: run_with(model, ids, 1), "the core is called"),
        (run_on_prefixes, "positions at once"),
        (run_changing_the_past, "handed on"),
        (run_changing_the_past_for_good, "made again"),
        (run_in_e_itself, "e.clone()"),
        (lambda model, ids, calls=1: run_with(model, ids, calls, excerpt=True), "the prelude runs once"),
        (lambda model, ids, calls=1: run_with(model, ids, calls, apart=True), "the coda reads all"),
        (run_last_row, "its shape"),
    ],
    "6.9": [
        (lambda m, ids, n: reach_with(m, ids, n, partner_of=lambda p, t: (p - 1).clamp(min=0)), "right before it"),
        (lambda m, ids, n: reach_with(m, ids, n, partner_of=lambda p, t: (p - 2 * t).clamp(min=0)), "2·t"),
        (lambda m, ids, n: reach_with(m, ids, n, partner_of=lambda p, t: back(p, t + 1)), "counted from 0"),
        (lambda m, ids, n: reach_with(m, ids, n, partner_of=lambda p, t: (p - 2**t) % len(p)), "negative index"),
        (
            lambda m, ids, n: reach_with(m, ids, n, partner_of=lambda p, t: (p - 2**t).where(p >= 2**t, p)),
            "START takes its place",
        ),
        (lambda m, ids, n: lesson06._reach_with(m, ids, n, states="partner e"), "not e"),
        (lambda m, ids, n: lesson06._reach_with(m, ids, n, states="both e"), "from e again"),
        (lambda m, ids, n: lesson06._reach_with(m, ids, n, early=True), "not before it"),
        (lambda m, ids, n: reach_with(m, ids, n, partner_of=back, held=False), "START keeps its state"),
        (lambda m, ids, n: lesson06._reach_with(m, ids, n, order=-1), "comes first"),
        (lambda m, ids, n: lesson06._reach_with(m, ids, n, kept=0), "the second of each pair"),
        (lambda m, ids, n: reach_with(m, ids, n, partner_of=back, merge=lambda found: found[-1]), "every loop"),
    ],
}
RIGHT = {
    "6.1": [
        lambda lengths, n_loops: sum([1.0 if n <= n_loops + 2 else 1 / 7 for n in lengths]) / len(lengths),
        lambda lengths, n_loops: np.where(np.array(lengths) - 2 <= n_loops, 1, 1 / 7).mean(),
        lambda lengths, n_loops: torch.where(torch.tensor(lengths) <= n_loops + 2, 1.0, 1 / 7).mean(),
    ],
    "6.2": [
        step_by_hand,
        lambda model, optimizer, batch, loss_of: step_with(model, optimizer, batch, loss_of).detach(),
        lambda model, optimizer, batch, loss_of: float(step_with(model, optimizer, batch, loss_of).detach()),
    ],
    "6.3": [
        sweep_with,
        lambda model, batch, n_loops: np.array(sweep_with(model, batch, n_loops)),
        lambda model, batch, n_loops: torch.tensor(sweep_with(model, batch, n_loops), dtype=torch.float64),
    ],
    "6.4": [plot_with, plot_points, plot_with_pyplot],
    "6.5": [
        loss_chain_by_chain,
        loss_with,
        lambda model, batch, n_loops: loss_with(model, batch, n_loops).reshape(1),
    ],
    "6.6": [
        lambda states, sums: torch.linalg.lstsq(with_one(states), F.one_hot(sums, 7).double(), driver="gelsd").solution,
        lambda states, sums: np.linalg.lstsq(with_one(states).numpy(), np.eye(7)[sums.numpy()], rcond=None)[0],
        lambda states, sums: torch.linalg.pinv(with_one(states)) @ F.one_hot(sums, 7).double(),
    ],
    "6.7": [swap_with_masks, swap_throughout, lambda *given: swap_with(*given).argmax(-1).numpy()],
    "6.8": [
        run_in_place,
        lambda model, ids, calls=1: run_with(model, ids, calls),
        lambda model, ids, calls_per_token=1: torch.stack(list(itertools.chain(run_with(model, ids, calls_per_token)))),
    ],
    "6.9": [reach_position_by_position, reach_by_the_package],
}
