"""Keep a run's numbers: python benchmarks/collect.py runs/NAME NAME

Copies results.json and log.jsonl of a finished run to benchmarks/results/runs/. Paths are cut to their last part, in sentences
too: where a file lay on the measuring machine is nobody's business, its sha256 stands beside it. Nothing else is changed, and
photographs stay behind.
"""
import json
import re
import sys
from pathlib import Path, PureWindowsPath

from unified_onehead.cli import exit_code
from unified_onehead.core.files import InputError

OUT = Path(__file__).resolve().parent / "results" / "runs"


def last_part(text: str) -> str:
    "What stands behind the last separator, of either kind."
    return PureWindowsPath(text).name if "/" in text or "\\" in text else text


def cut(value, path: str):
    "A record in which no text names `path` any longer, but for its last part."
    if isinstance(value, dict):
        return {key: cut(v, path) for key, v in value.items()}
    if isinstance(value, list):
        return [cut(v, path) for v in value]
    if value == path:
        return last_part(path.rstrip("/\\")) or path
    folder = path.rstrip("/\\")  # a sentence goes on behind it
    if not isinstance(value, str) or last_part(folder) in ("", ".", "..", folder):
        return value
    whole = rf"(?<![\w./\\-]){re.escape(folder)}(?![\w-])"  # no part of another path
    return re.sub(whole, lambda _: last_part(folder), value)


def read(path: Path) -> str:
    "What is in a file of the run. Raises InputError where it is missing."
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Give the folder of a finished run.") from error


def collect(run: Path, name: str) -> Path:  # the copy of results.json; the log lies beside it
    "Copy both files. Raises InputError, with nothing written, where one of them is missing."
    results, log = json.loads(read(run / "results.json")), read(run / "log.jsonl")
    groups = ("data", "root"), ("data", "synthetic_dir"), ("net", "weights")
    paths = {results["data"]["root"], *(results["config"][group][key] for group, key in groups)}
    for path in sorted(paths, key=len, reverse=True):  # a folder's files before it
        results = cut(results, path)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (OUT / f"{name}.jsonl").write_text(log, encoding="utf-8")
    return OUT / f"{name}.json"


def main(argv: "list[str] | None" = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 2:
        sys.exit(__doc__)
    return exit_code(lambda: print("wrote", collect(Path(words[0]), words[1])))


if __name__ == "__main__":
    sys.exit(main())
