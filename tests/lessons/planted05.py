"""Lesson 5: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import itertools
import math

import numpy as np
import torch


def weights_without_remainder(probabilities, threshold):
    weights, spent = [], 0.0
    for p in probabilities:
        weights.append(0.0 if spent >= threshold else min(p, 1 - spent) if spent + p < threshold else 1 - spent)
        spent += weights[-1]
    return weights


def other_weights(probabilities, threshold):
    spent = list(itertools.accumulate(probabilities, initial=0.0))
    first = next((i for i, total in enumerate(spent[1:]) if total >= threshold), len(probabilities) - 1)
    return torch.tensor(probabilities[:first] + [1 - spent[first]] + [0.0] * (len(probabilities) - first - 1))


def other_cost(probabilities, threshold):
    weights = [w for w in other_weights(probabilities, threshold).double().tolist() if w > 0]
    return len(weights) + weights[-1]


def stop(changes, tolerance, patience, *, row=True, first=2):
    quiet = 0
    for loop, change in enumerate(changes, start=first):
        quiet = quiet + 1 if change <= tolerance else (0 if row else quiet)
        if quiet == patience:
            return loop
    return len(changes) + 1


def variation(answers):
    return (0.5 * answers.diff(dim=0).abs().sum(-1)).tolist()


def other_exit(answers, tolerance, patience):
    quiet = torch.tensor([change <= tolerance for change in variation(answers)])
    runs = [i + patience + 1 for i in range(len(quiet) - patience + 1) if quiet[i : i + patience].all()]
    return min(runs, default=len(answers))


def saved(used, fixed, check):
    return 1 - sum(n + n * check for n in used) / sum(fixed + check for _ in used)


WRONG = {
    "5.1": [
        (weights_without_remainder, "run out"),
        (lambda p, threshold: p, "takes only what remains"),
        (lambda p, threshold: [1.0] + [0.0] * (len(p) - 1), "should be"),
        (lambda p, threshold: [w for w in other_weights(p, threshold).tolist() if w > 0], "one per loop"),
        (lambda p, threshold: 1.0, "a list of weights"),
        (lambda p, threshold: [w / sum(p) for w in p], "should be"),
        (lambda p, threshold: [0.9 * w for w in other_weights(p, threshold).tolist()], "halts takes what remains"),
        (lambda p, threshold: other_weights(p, math.nextafter(threshold, 2)), "at least, not more than"),
        (lambda p, threshold: other_weights(p, 0.99), "threshold that is given"),
        (lambda p, threshold: other_weights(p, threshold).sum(), "a list of weights"),
        (lambda p, threshold: {0: 1.0}, "a list of weights"),
    ],
    "5.2": [
        (lambda p, threshold: int(other_cost(p, threshold) - 1e-9), "remainder R is missing"),
        (lambda p, threshold: other_cost(p, threshold) - int(other_cost(p, threshold) - 1e-9), "remainder alone"),
        (lambda p, threshold: len(p) + 2.0, "more than all loops"),
        (lambda p, threshold: None, "a number"),
        (lambda p, threshold: 1.0, "should be"),
        (lambda p, threshold: other_cost(p, math.nextafter(threshold, 2)), "at least, not more than"),
        (lambda p, threshold: other_cost(p, 0.99), "threshold that is given"),
        (lambda p, threshold: np.float64(len(p) + 2), "more than all loops"),
    ],
    "5.3": [
        (lambda answers, t, n: stop(variation(answers), t, n, row=False), "follow each other"),
        (lambda answers, t, n: stop([2 * c for c in variation(answers)], t, n), "half the sum"),
        (lambda answers, t, n: stop(variation(answers), t, n, first=1), "after loop 2"),
        (lambda answers, t, n: len(answers), "should be"),
        (lambda answers, t, n: False, "a loop's number"),
        (lambda answers, t, n: stop((answers.argmax(-1).diff() != 0).tolist(), t, n), "the likeliest answer"),
        (lambda answers, t, n: stop(answers.diff(dim=0).abs().amax(-1).tolist(), t, n), "taking the largest"),
        (lambda answers, t, n: stop(answers.diff(dim=0).norm(dim=-1).tolist(), t, n), "squares nothing"),
        (
            lambda answers, t, n: stop((answers[1:] - answers[0]).abs().sum(-1).div(2).tolist(), t, n),
            "not with the first",
        ),
        (lambda answers, t, n: stop(variation(answers), math.nextafter(t, 0), n), "not less than"),
        (lambda answers, t, n: stop(variation(answers), t, n + 1), "not at one more"),
        (lambda answers, t, n: np.float64(2.5), "a loop's number"),
        (lambda answers, t, n: variation(answers), "a number"),
    ],
    "5.4": [
        (lambda used, fixed, check: sum(used) / (len(used) * fixed) if not check else 0.0, "the share spent"),
        (lambda used, fixed, check: 1 - sum(used) / (len(used) * fixed), "not free"),
        (lambda used, fixed, check: 1 - sum(used) * (1 + check) / (len(used) * fixed), "once"),
        (lambda used, fixed, check: 100 * saved(used, fixed, check), "a percentage"),
        (lambda used, fixed, check: 1 - np.mean(used) / fixed, "not free"),
        (lambda used, fixed, check: "half", "a number"),
    ],
}
RIGHT = {
    "5.1": [
        other_weights,
        lambda p, threshold: other_weights(p, threshold).numpy(),
        lambda p, threshold: [np.float32(weight) for weight in other_weights(p, threshold)],
        lambda p, threshold: tuple(other_weights(p, threshold)),
    ],
    "5.2": [
        other_cost,
        lambda p, threshold: np.float32(other_cost(p, threshold)),
        lambda p, threshold: torch.tensor(other_cost(p, threshold)),
    ],
    "5.3": [
        other_exit,
        lambda answers, t, n: np.int64(other_exit(answers, t, n)),
        lambda answers, t, n: torch.tensor(other_exit(answers, t, n)),
        lambda answers, t, n: float(
            stop((1 - np.minimum(answers[1:].numpy(), answers[:-1].numpy()).sum(-1)).tolist(), t, n)
        ),
    ],
    "5.4": [
        saved,
        lambda used, fixed, check: 1 - np.mean(used) * (1 + check) / (fixed + check),
        lambda used, fixed, check: 1 - torch.tensor(used, dtype=torch.double).mean() * (1 + check) / (fixed + check),
    ],
}
