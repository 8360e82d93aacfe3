"""Tables of what was measured outside the study: single steps, on a GPU, in fewer bits, fine-tuned, in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mythos_lite.study.report import markdown

Counts = dict[tuple[int, int], tuple[int, int]]
"""Digits and loops → right answers, and chains."""


def step_errors_table(found: dict) -> str:
    """Right steps among those whose parts were right, by elements in the product."""
    models: dict[str, list[dict]] = {}
    for row in found["steps"]:
        models.setdefault(f"{row['rung']}, seed {row['seed']}", []).append(row)
    sizes = [f"{row['n_elements']} elements" for row in next(iter(models.values()))]
    lines = [
        [name, *(f"{row['n_right'] / row['n_steps']:.4f} of {row['n_steps']:,}" for row in rows)]
        for name, rows in models.items()
    ]
    return markdown(["right, if both parts were", *sizes], lines)


def rounded_table(found: dict) -> str:
    """Accuracy of the models whose states are rounded after every loop."""
    rows = [(f"{row['rung']}, seed {row['seed']}", row["counts"]) for row in found["rounded"]]
    lines = [[name, *(f"{right / chains:.3f}" for _, _, chains, right in counts)] for name, counts in rows]
    return markdown(["rounded after every loop", *(f"{n} @ {n_loops}" for n, n_loops, *_ in rows[0][1])], lines)


def cuda_table(found: dict) -> str:
    lines = [
        [row["model"], row["precision"], f"{row['tokens']:,}", f"{row['ms']:.0f}", f"{row['tflops']:.3g}",
         f"{row['products_tflops']:.0f}", f"{row['share']:.3f}"]
        for row in found["rows"]
    ]  # fmt: skip
    columns = ["a training step of", "in", "tokens", "ms", "TFLOP/s", "a plain product's", "share"]
    return markdown(columns, lines)


def _share(counts: Counts, digits: Iterable[int], n_loops: int) -> float:
    pairs = [counts[n, n_loops] for n in digits]
    return sum(right for right, _ in pairs) / sum(chains for _, chains in pairs)


_LLAMA_ASKED = (
    ((2, 3, 4, 5), 4),
    ((6,), 4),
    ((7,), 8),
    ((8,), 8),
    ((16,), 16),
    ((32,), 32),
    ((2, 3, 4, 5), 32),
    ((8,), 64),
)


def llama_models_table(found: dict) -> str:
    """What the models that llama.cpp can run know of the chains, beside ``mod7``, in torch."""
    counts: dict[int | None, Counts] = {}
    for row in found["torch"]:
        counts.setdefault(row["seed"], {})[row["n_digits"], row["n_loops"]] = row["n_correct"], row["n_chains"]
    lines = []
    for seed, own in counts.items():
        name = "`mod7`, which does not fit" if seed is None else f"within llama.cpp's profile, seed {seed}"
        lines.append([name, *(f"{_share(own, digits, n_loops):.3f}" for digits, n_loops in _LLAMA_ASKED)])
    return markdown(["model", *(f"{_span(digits)} @ {n_loops}" for digits, n_loops in _LLAMA_ASKED)], lines)


def _span(digits: Sequence[int]) -> str:
    return f"{digits[0]}–{digits[-1]}" if len(digits) > 1 else f"{digits[0]}"


def llama_cpp_table(found: dict) -> str:
    """Whether llama.cpp answers as torch does, all lengths and seeds together."""
    together: dict[tuple[str, int], list[dict]] = {}
    for row in found["llama_cpp"]:
        together.setdefault((row["cache"], row["n_loops"]), []).append(row)
    lines = []
    for (cache, n_loops), rows in sorted(together.items()):
        chains, alike, right, ours = (
            sum(row[key] for row in rows) for key in ("n_chains", "n_alike", "n_correct", "n_correct_torch")
        )
        apart = max(row["max_difference"] for row in rows)
        lines.append([cache, str(n_loops), f"{alike:,} of {chains:,}", f"{right:,}", f"{ours:,}", f"{apart:.1e}"])
    columns = ["keys and values in", "loops", "answers alike", "right in llama.cpp", "right in torch"]
    return markdown([*columns, "largest difference of logits"], lines)


def finetuning_table(found: dict) -> str:
    """Worst seed of every modulus and way."""
    together: dict[tuple[int, int], list[dict]] = {}
    for row in found["rows"]:
        together.setdefault((row["modulus"], row["bits"]), []).append(row)
    lines = []
    for (modulus, bits), rows in sorted(together.items(), key=lambda item: (item[0][0], -item[0][1])):
        far = zip(*(row["far"] for row in rows), strict=True)
        seconds = [row["cpu_seconds"] for row in rows]
        lines.append([
            f"modulo {modulus}", "LoRA" if bits == 32 else "QLoRA", str(len(rows)),
            f"{100 * rows[0]['n_trained'] / rows[0]['n_parameters']:.1f} %",
            *(f"{min(row['accuracy'][loops] for row in rows):.3f}" for loops in ("4", "8", "16")),
            *(f"{min(right / chains for _, _, chains, right in asked):.3f}" for asked in far),
            f"{min(seconds):.0f} to {max(seconds):.0f}",
        ])  # fmt: skip
    asked = [f"{n} @ {n_loops}" for n, n_loops, *_ in found["rows"][0]["far"]]
    columns = ["rule", "way", "seeds", "trained", *(f"held out @ {n}" for n in (4, 8, 16)), *asked, "CPU seconds"]
    return markdown(columns, lines)


_BITS_ASKED = ((8, 8), (8, 16), (8, 64), (16, 16), (16, 64), (32, 32), (32, 64), (64, 64))


def quantization_table(found: dict) -> str:
    """Accuracy by form; and what is lost at most, with as many loops as digits and with 64."""
    lines, first = [], {row["model"]: _accuracies(row) for row in found["rows"] if row["bits"] == 32}
    for row in found["rows"]:
        own, reference = _accuracies(row), first[row["model"]]
        lost = []
        for asked in ([(n, n) for n in (2, 4, 8, 16, 32, 64)], [(n, 64) for n in sorted({n for n, _ in own})]):
            points, n = max((reference[pair] - own[pair], -pair[0]) for pair in asked)
            lost.append(f"{100 * points:.1f} ({-n} digits)" if points > 0 else "0")
        cells = [f"{own[pair]:.3f}" for pair in _BITS_ASKED]
        lines.append([row["model"], row["form"], f"{row['onnx_bytes']:,}", *cells, *lost])
    columns = ["model", "form", "bytes as ONNX", *(f"{n} @ {loops}" for n, loops in _BITS_ASKED)]
    return markdown([*columns, "most points lost, loops as digits", "most points lost, 64 loops"], lines)


def _accuracies(row: dict) -> dict[tuple[int, int], float]:
    return {(n, n_loops): right / chains for n, n_loops, chains, right in row["counts"]}


def latency_table(found: dict) -> str:
    lines = [
        [row["runtime"], row["form"], f"{row['ms']:.2f}", "{1:.2f} ({0:.2f}–{2:.2f})".format(*row["ratio"])]
        for row in found["latency"]
    ]
    return markdown(["runtime", "form", "ms", "times float32 (quartiles)"], lines)
