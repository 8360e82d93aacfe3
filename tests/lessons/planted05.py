"""Lesson 5: answers that its checks must reject, with a word of what they must say, and others they must accept."""

import itertools

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


WRONG = {
    "5.1": [
        (weights_without_remainder, "run out"),
        (lambda p, threshold: p, "takes only what remains"),
        (lambda p, threshold: [1.0] + [0.0] * (len(p) - 1), "should be"),
        (lambda p, threshold: [w for w in other_weights(p, threshold).tolist() if w > 0], "one per loop"),
        (lambda p, threshold: 1.0, "a list of weights"),
        (lambda p, threshold: [w / sum(p) for w in p], "should be"),
        (lambda p, threshold: [0.9 * w for w in other_weights(p, threshold).tolist()], "halts takes what remains"),
    ],
    "5.2": [
        (lambda p, threshold: int(other_cost(p, threshold) - 1e-9), "remainder R is missing"),
        (lambda p, threshold: other_cost(p, threshold) - int(other_cost(p, threshold) - 1e-9), "remainder alone"),
        (lambda p, threshold: len(p) + 2.0, "more than all loops"),
        (lambda p, threshold: None, "a number"),
        (lambda p, threshold: 1.0, "should be"),
    ],
    "5.3": [
        (lambda answers, t, n: stop(variation(answers), t, n, row=False), "follow each other"),
        (lambda answers, t, n: stop([2 * c for c in variation(answers)], t, n), "half the sum"),
        (lambda answers, t, n: stop(variation(answers), t, n, first=1), "after loop 2"),
        (lambda answers, t, n: len(answers), "should be"),
        (lambda answers, t, n: False, "a loop's number"),
    ],
    "5.4": [
        (lambda used, fixed, check: sum(used) / (len(used) * fixed) if not check else 0.0, "the share spent"),
        (lambda used, fixed, check: 1 - sum(used) / (len(used) * fixed), "not free"),
        (lambda used, fixed, check: 1 - sum(used) * (1 + check) / (len(used) * fixed), "once"),
        (lambda used, fixed, check: 100 * RIGHT["5.4"](used, fixed, check), "a percentage"),
        (lambda used, fixed, check: "half", "a number"),
    ],
}
RIGHT = {
    "5.1": other_weights,
    "5.2": other_cost,
    "5.3": other_exit,
    "5.4": lambda used, fixed, check: 1 - sum(n + n * check for n in used) / sum(fixed + check for _ in used),
}
