"""Write everything that is made of the records in ``results/study``.

    python results/build.py           # summary.json of the package, tables in two READMEs, figures
    python results/build.py --check   # say what would change, and exit with 1 if anything would

Tables stand between the markers ``<!-- study NAME: begin -->`` and ``<!-- study NAME: end -->``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path.insert(0, str(ROOT))

from mythos_lite.study import figures, summary, tables  # noqa: E402

DOCUMENTS = (ROOT / "README.md", FOLDER / "README.md")


def built() -> dict[Path, bytes]:
    """Every file that follows from the records, with what belongs into it."""
    found = summary.summarise(summary.read_records(FOLDER / "study"))
    files = {summary.SUMMARY: (json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n").encode()}
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for name, table in tables.TABLES.items():
            block = rf"(<!-- study {name}: begin -->\n).*?(<!-- study {name}: end -->)"
            with contextlib.suppress(KeyError):  # a table whose runs are not there yet stays as it is
                made = table(found)
                text = re.sub(block, lambda match, made=made: f"{match[1]}{made}{match[2]}", text, flags=re.S)
        files[path] = text.encode()
    return files


def drawn() -> dict[Path, bytes]:
    """The figures; they are compared by eye, not byte by byte."""
    found, files = summary.load_summary(), {}
    for name, figure in figures.FIGURES.items():
        buffer = io.BytesIO()
        with contextlib.suppress(KeyError):
            figure(found).savefig(buffer, format="png", metadata={"Software": None})
            files[FOLDER / f"{name}.png"] = buffer.getvalue()
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description="Write tables and figures from the records in results/study.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something would change")
    checking = parser.parse_args().check
    files = built()
    stale = [path for path, content in files.items() if not path.exists() or path.read_bytes() != content]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is not' if checking else 'was not'} what the records say")
        if not checking:
            path.write_bytes(files[path])
    if not checking:
        for path, content in drawn().items():
            path.write_bytes(content)
    return int(checking and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
