"""Write everything that is made of the records in ``results/study``.

    python results/build.py   # summary.json of the package, tables in both READMEs, figures

Tables stand between the markers ``<!-- study NAME: begin -->`` and ``<!-- study NAME: end -->``. Tests compare
all of it with the records.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path[:0] = [str(ROOT), str(FOLDER)]

import elsewhere  # noqa: E402
import figures  # noqa: E402
import pooling  # noqa: E402
import tables  # noqa: E402

from benchmarks import bench  # noqa: E402
from mythos_lite.files.atomic import write_files  # noqa: E402
from mythos_lite.lessons import summary  # noqa: E402
from mythos_lite.measure.plots import to_png  # noqa: E402
from mythos_lite.study.report import seed_tables  # noqa: E402

ELSEWHERE = {
    "steps": ("step_errors.json", elsewhere.step_errors_table),
    "rounded": ("step_errors.json", elsewhere.rounded_table),
    "cuda": ("cuda.json", elsewhere.cuda_table),
    "llama models": ("llama_cpp.json", elsewhere.llama_models_table),
    "llama.cpp": ("llama_cpp.json", elsewhere.llama_cpp_table),
    "fine-tuning": ("finetuning.json", elsewhere.finetuning_table),
    "bits": ("quantization.json", elsewhere.quantization_table),
    "bits, time": ("quantization.json", elsewhere.latency_table),
}
DOCUMENTS = (ROOT / "README.md", FOLDER / "README.md")


def built() -> dict[Path, bytes]:
    """Every file that follows from the records, with what belongs into it."""
    records = pooling.read_records(FOLDER / "study")
    single = [record for record in records if record["study"] == "experiment"]
    found = pooling.summarise(records)
    made = {name: table(found) for name, table in tables.TABLES.items()}
    files = {summary.SUMMARY: (json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n").encode()}
    dense = [record for record in single if "experts" not in record["rung"]]
    made["sizes"] = tables.sizes_table()
    made["spans"] = tables.spans_table(json.loads((FOLDER / "spans.json").read_text(encoding="utf-8"))["rows"])
    measured = json.loads(bench.RESULT.read_text(encoding="utf-8"))["parts"]
    made["bench"] = bench.shown([row for part in measured.values() for row in part["rows"]]) + "\n"
    for name, (file, table) in ELSEWHERE.items():
        made[name] = table(json.loads((FOLDER / file).read_text(encoding="utf-8")))
    made |= {"recipes": seed_tables(dense, per_seed=False), "recipes, each seed": seed_tables(single, per_seed=True)}
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for name, table in made.items():
            block = rf"(<!-- study {name}: begin -->\n).*?(<!-- study {name}: end -->)"
            text = re.sub(block, lambda match, table=table: f"{match[1]}{table}{match[2]}", text, flags=re.S)
        files[path] = text.encode()
    return files


def drawn() -> dict[Path, bytes]:
    """The figures, from the summary."""
    found = summary.load_summary()
    return {FOLDER / f"{name}.png": to_png(figure(found)) for name, figure in figures.FIGURES.items()}


if __name__ == "__main__":
    for write in (built, drawn):  # the figures are drawn from the summary that was just written
        write_files(write())
