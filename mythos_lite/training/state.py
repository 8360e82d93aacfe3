"""A run's folder: what the run needs to go on where it was stopped, and the records that it has logged.

``training.safetensors`` holds weights, average, optimiser moments, step and history in one file, which is replaced as a
whole. ``metrics.jsonl`` holds one record a line. The lines are collected in ``metrics.jsonl.part`` as they come; only a
run that ends replaces those of an earlier one.
"""

import hashlib
import json
import os

import torch
from torch import Tensor, nn

from mythos_lite.checks import NonFiniteError
from mythos_lite.files.atomic import make_folder, write_files
from mythos_lite.files.checkpoint import CheckpointError, pack, unpack
from mythos_lite.training.parallel import is_first

STATE_FILE = "training.safetensors"
METRICS_FILE = "metrics.jsonl"
PART_FILE = "metrics.jsonl.part"


class RunState:
    """Saves and loads a run in ``folder``; without one it does nothing.

    ``identity`` (JSON values) says which run it is: a state is loaded only into the run that saved it. Of several
    processes that train together the first one saves, and all load.
    """

    def __init__(
        self, folder: str | os.PathLike | None, identity: dict, model: nn.Module,
        optimizer: torch.optim.Optimizer, average: dict[str, Tensor],
    ) -> None:  # fmt: skip
        self.identity, self.model, self.optimizer, self.average = identity, model, optimizer, average
        self.folder = None if folder is None else make_folder(folder)
        self.saved_at: int | None = None
        self.writes = self.folder is not None and is_first()

    def save(self, step: int, history: list[dict]) -> None:
        """Replace the state; ``NonFiniteError`` before that if a tensor is not finite."""
        if not self.writes:
            return
        moments = self.optimizer.state_dict()["state"]
        moments = {f"optimizer.{i}.{key}": tensor for i, entries in moments.items() for key, tensor in entries.items()}
        tensors = {**self._weights(), **moments}
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise self.not_finite(f"the weights are not finite after step {step}")
        metadata = {"step": str(step), "history": json.dumps(history)}
        write_files({self.folder / STATE_FILE: pack(tensors, {**metadata, "run": self._seal(metadata)})})
        self.saved_at = step

    def load(self) -> tuple[int, list[dict]]:
        """Put what was saved in place; return the step to go on from and the history so far.

        Raises:
            CheckpointError: for a state of another run or of other code, or a damaged one. Nothing is changed then.
        """
        if self.folder is None or not (path := self.folder / STATE_FILE).exists():
            return 0, []
        tensors, metadata = unpack(path)
        if metadata.get("run") != self._seal(metadata):
            what = "is the state of another run or of another version of the code, or it was changed"
            raise CheckpointError(f"{path} {what}; choose another folder, or remove the file to start anew")
        moments = {}
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensors.pop(name)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        for name, tensor in self._weights().items():
            tensor.copy_(tensors[name])
        self.saved_at = int(metadata["step"])
        return self.saved_at, json.loads(metadata["history"])

    def _weights(self) -> dict[str, Tensor]:
        """The live tensors of model and average."""
        parts = {"model": self.model.state_dict(), "average": self.average}
        return {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}

    def _seal(self, metadata: dict[str, str]) -> str:
        """Hash of identity, step and history: it tells whether they belong together."""
        sealed = [self.identity, metadata.get("step"), metadata.get("history")]
        return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()

    def log(self, records: list[dict], mode: str = "a") -> None:
        """Append lines to those that are being collected; with mode ``"w"`` begin them anew."""
        if self.writes:
            with open(self.folder / PART_FILE, mode, encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)

    def finish_log(self) -> None:
        """Put the lines in the place of an earlier run's."""
        if self.writes:
            os.replace(self.folder / PART_FILE, self.folder / METRICS_FILE)

    def not_finite(self, what: str) -> NonFiniteError:
        """What to raise for numbers that are not finite; it also says what has been saved."""
        kept = f"the weights after step {self.saved_at} are kept in {self.folder and self.folder / STATE_FILE}"
        return NonFiniteError(f"{what}; {'nothing had been saved yet' if self.saved_at is None else kept}")
