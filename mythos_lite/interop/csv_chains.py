"""Chains and answers from somebody's CSV file: what is read, what is refused, and what is held out."""

import csv
import io
import itertools
import os
from pathlib import Path

import torch

from mythos_lite.files.checkpoint import Checkpoint
from mythos_lite.task.chains import Batch, ChainTask, make_generator

COLUMNS = ["chain", "answer"]
FEWEST_CHAINS = 100
MOST_LISTED = 10
Chains = dict[tuple[int, ...], int]
"""The answer of each chain."""


def digits_of(found: Checkpoint) -> ChainTask | None:
    """The tokens of a model of digit chains, as a task whose answers nobody reads; ``None`` for another model.

    Notes may say anything. A model that was fine-tuned here says the kind ``"file"``.
    """
    notes, n = found.notes.get("task"), (found.config.pad_token_id or 0) - 2
    notes = notes if isinstance(notes, dict) else {}
    if notes.get("kind", "file") not in ("ChainTask", "file") or n < 2:
        return None
    return ChainTask(modulus=n, n_symbols=n, start_token=notes.get("start_token", True))


def read_chains(path: str | os.PathLike, n_symbols: int, most_digits: int) -> Chains:
    """Distinct chains of the digits 0 … ``n_symbols`` − 1 and their answers, from a file with columns ``chain,answer``.

    A chain is written as ``351`` or ``3 5 1``, from 11 digits on with blanks only. Blank lines, a byte order mark and
    any line ends are fine. A row that is there twice counts once.

    Raises:
        ValueError: for a file that is no such text, for rows that cannot be used (``MOST_LISTED`` are listed, with
            their lines), and for fewer than ``FEWEST_CHAINS`` distinct chains.
        OSError: for a file that cannot be read.
    """
    try:
        lines = csv.reader(io.StringIO(Path(path).read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        rows, first = [], 1
        for row in lines:  # one in quotes may have several lines
            rows += [(first, row)] if any(cell.strip() for cell in row) else []
            first = lines.line_num + 1
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if not rows or [cell.strip() for cell in rows[0][1]] != COLUMNS:
        found = f"begins with {','.join(rows[0][1])[:80]!r}" if rows else "is empty"
        raise ValueError(f"{path} {found}; its first line must be {','.join(COLUMNS)!r}")
    chains, lines_of, flaws = {}, {}, []
    for line, row in rows[1:]:
        if flaw := _flaw(row, n_symbols, most_digits):
            flaws.append(f"\n  line {line}: {flaw}")
            continue
        chain, answer = tuple(map(int, _digits(row[0], n_symbols))), int(row[1])
        if chains.setdefault(chain, answer) != answer:
            flaws.append(f"\n  line {line}: answer {answer} where line {lines_of[chain]} has {chains[chain]}")
        lines_of.setdefault(chain, line)
    if flaws:
        more = f"\n  and {len(flaws) - MOST_LISTED} more" if len(flaws) > MOST_LISTED else ""
        raise ValueError(f"{path} has rows that cannot be used:{''.join(flaws[:MOST_LISTED])}{more}")
    if len(chains) < FEWEST_CHAINS:
        raise ValueError(f"{path} has {len(chains)} different chains, too few to learn from: give {FEWEST_CHAINS}")
    return chains


def _digits(chain: str, n_symbols: int) -> list[str]:
    return list("".join(chain.split())) if n_symbols <= 10 else chain.split()


def _flaw(row: list[str], n_symbols: int, most_digits: int) -> str | None:
    """Why a row cannot be used, if so."""
    if len(row) != len(COLUMNS):
        return f"{len(row)} columns in place of {len(COLUMNS)}"
    digits, known = _digits(row[0], n_symbols), {str(number) for number in range(n_symbols)}
    for what, symbol in (*(("the chain", digit) for digit in digits), ("the answer", row[1].strip())):
        if symbol not in known:
            return f"{what} holds {symbol[:20]!r}, which is none of the digits 0 to {n_symbols - 1}"
    if not 1 <= len(digits) <= most_digits:
        return f"the chain has {len(digits)} digits; 1 to {most_digits} are accepted"
    return None


def split_chains(chains: Chains, seed: int) -> tuple[Chains, Chains]:
    """Nine tenths of the chains, and those held out, drawn with ``seed``."""
    rows = list(chains.items())
    order = torch.randperm(len(rows), generator=make_generator(seed), device="cpu").tolist()
    rows, n_held_out = [rows[place] for place in order], len(rows) // 10
    return dict(rows[n_held_out:]), dict(rows[:n_held_out])


def encode_chains(task: ChainTask, chains: Chains) -> Batch:
    """All chains in one batch, from short to long, with these answers in place of the task's own."""
    parts = [list(part) for _, part in itertools.groupby(sorted(chains, key=len), key=len)]
    batch = task.join([task.encode(torch.tensor(part, device="cpu")) for part in parts])
    return batch._replace(answers=torch.tensor([chains[chain] for part in parts for chain in part], device="cpu"))


def take(batch: Batch, chosen: torch.Tensor) -> Batch:
    """The ``chosen`` chains of a batch, padded no further than to the longest of them."""
    batch = Batch(*(tensor[chosen] for tensor in batch))
    return batch._replace(token_ids=batch.token_ids[:, : int(batch.answer_positions.max()) + 1])
