"""Keep a run's numbers: python benchmarks/collect.py runs/NAME NAME

Copies results.json and log.jsonl of a finished run to benchmarks/results/runs/. Paths are cut to their last part: where a
file lay on the measuring machine is nobody's business, its sha256 stands beside it. Nothing else is changed, and photographs
stay behind.
"""
import json
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parent / "results" / "runs"


def last_part(text: str) -> str:
    return Path(text).name if "/" in text else text


def main(run: Path, name: str) -> None:
    results = json.loads((run / "results.json").read_text())
    results["data"]["root"] = last_part(results["data"]["root"])
    for group, key in (("data", "root"), ("net", "weights")):
        results["config"][group][key] = last_part(results["config"][group][key])
    for rule in results["rules"]:
        if rule["name"] == "data: layout":
            rule["value"] = last_part(rule["value"])
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (OUT / f"{name}.jsonl").write_text((run / "log.jsonl").read_text())
    print("wrote", OUT / f"{name}.json")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])
