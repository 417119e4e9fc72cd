"""The server under load: python benchmarks/serve_load.py --weights W --photographs DIR [--requests 1000] [--clients 8]

Starts `serve` as a process of its own, on a free port, and asks it from as many threads as there are clients, each with a
connection that it keeps. First one client alone, then all together; after that the same again with every tenth upload a bad one:
empty, a letter, half a photograph, a wrong field, more megabytes than are taken. Counted as lost is a request without an
answer, or with another status than was due; every good answer is compared with what `Predictor` says here, its times apart.

Server and clients share the machine's cores, so the figures are a lower bound of what the server does alone. The record, with
versions, device and peak memory of the server, is benchmarks/results/serve/NAME.json; --table prints all records.
"""
import argparse
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).resolve().parent / "results" / "serve"
START = """import sys
from unified_onehead.deploy.serve import serve
serve(sys.argv[1], port=0, queue=int(sys.argv[2]), max_mb=float(sys.argv[3]), device=sys.argv[4] or None,
      say=lambda text: print(text, flush=True))"""
MAX_MB, BOUNDARY = 5, "----onehead"


def form(data: bytes, name: str = "photo.jpg", field: str = "file") -> bytes:
    "A form with one file."
    head = (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
            "Content-Type: image/jpeg\r\n\r\n")
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def bad_uploads(photo: bytes) -> list:  # pairs of body and the status that is due
    "One of each kind."
    return [(form(b""), 422), (form(b"Dear all, see you on Monday.", "letter.jpg"), 422), (form(photo[:len(photo) // 2]), 422),
            (form(photo, field="picture"), 422), (form(bytes(int(1.2e6 * MAX_MB))), 413)]


class Client(threading.Thread):
    "Takes the next request from the list, until there is none."

    def __init__(self, port: int, work, found: list, lock: threading.Lock):
        super().__init__()
        self.port, self.work, self.found, self.lock = port, work, found, lock

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while True:
            with self.lock:
                job = next(self.work, None)
            if job is None:
                return
            key, body, due = job
            start = time.perf_counter()
            try:
                connection.request("POST", "/predict", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
                answer = connection.getresponse()
                status, text = answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                status, text = type(error).__name__, b""
                connection.close()
            self.found.append((key, due, status, 1000 * (time.perf_counter() - start), text))


def measure(port: int, jobs: list, clients: int, expected: dict) -> dict:
    "All jobs by so many clients; what came of it."
    found, work, lock = [], iter(jobs), threading.Lock()
    threads = [Client(port, work, found, lock) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    times = sorted(ms for _, due, status, ms, _ in found if due == status == 200)
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    lost = [(key, due, status) for key, due, status, _, _ in found if due != status]
    other = [key for key, due, status, _, text in found
             if due == status == 200 and without_times(json.loads(text)) != expected[key]]
    return {"clients": clients, "requests": len(jobs), "answered": len(found), "good": len(times), "lost": len(lost),
            "lost_examples": lost[:5], "differ_from_predictor": len(other), "requests_per_second": round(len(found) / wall, 2),
            "ms": {"p50": round(cuts[49], 1), "p95": round(cuts[94], 1), "p99": round(cuts[98], 1), "max": round(times[-1], 1)},
            "seconds": round(wall, 1), "refused_as_due": sum(due == status != 200 for _, due, status, _, _ in found)}


def without_times(answer: dict) -> dict:
    "What two passes have in common."
    return {key: value for key, value in answer.items() if key not in ("speed", "path")}


def peak_mb(pid: int) -> float:
    "The largest resident set that the process had, where the system keeps it (Linux); else the present one."
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))) / 1024
    return psutil.Process(pid).memory_info().rss / 1e6


def run(args) -> dict:
    "Start the server, ask it, end it."
    from unified_onehead.deploy.predictor import Predictor
    photos = sorted(p for p in Path(args.photographs).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:args.photos]
    predictor, bodies = Predictor(args.weights, args.device), {p: p.read_bytes() for p in photos}
    expected = {p: json.loads(json.dumps(without_times(predictor(p).to_dict()))) for p in photos}
    device = str(predictor.device)
    del predictor
    good = [(p, form(bodies[p], p.name), 200) for p in photos]
    bad = [("bad", *pair) for pair in bad_uploads(bodies[photos[0]])]
    jobs = [good[k % len(good)] for k in range(args.requests)]
    mixed = [bad[k // 10 % len(bad)] if k % 10 == 9 else job for k, job in enumerate(jobs)]
    command = [sys.executable, "-c", START, args.weights, str(2 * args.clients), str(MAX_MB), args.device or ""]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        port = int(server.stdout.readline().split("http://127.0.0.1:")[1].split()[0])
        measure(port, jobs[:20], 1, expected)  # the first ones warm the machine up
        memory = {"idle": round(peak_mb(server.pid))}
        record = {"alone": measure(port, jobs[:100], 1, expected), "together": measure(port, jobs, args.clients, expected)}
        memory["peak"] = round(peak_mb(server.pid))
        record["with_bad_uploads"] = measure(port, mixed, args.clients, expected)
        memory["peak_with_bad_uploads"] = round(peak_mb(server.pid))
    finally:
        server.terminate()
        server.wait(60)
    mean = round(statistics.mean(map(len, bodies.values())) / 1e3, 1)
    return {**record, "server_memory_mb": memory, "photographs": {"count": len(photos), "mean_kb": mean}, "device": device,
            "cores": os.cpu_count(), "load_before": args.load, "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "machine": platform.platform(), "python": platform.python_version(), "note": args.note,
            "versions": {name: version(name) for name in ("torch", "fastapi", "starlette", "uvicorn", "pillow")},
            "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()}


def table() -> str:
    "All records as lines."
    lines = [f"{'record':<24} {'':<17} clients  requests  lost  differ  per s   p50    p95    p99 ms  peak MB"]
    for path in sorted(OUT.glob("*.json")):
        record = json.loads(path.read_text())
        for part in ("alone", "together", "with_bad_uploads"):
            r, ms = record[part], record[part]["ms"]
            peak = record["server_memory_mb"]["peak_with_bad_uploads" if part == "with_bad_uploads" else "peak"]
            times = " ".join(f"{ms[key]:>6}" for key in ("p50", "p95", "p99"))
            lines.append(f"{path.stem:<24} {part:<17} {r['clients']:>7} {r['requests']:>9} {r['lost']:>5} "
                         f"{r['differ_from_predictor']:>7} {r['requests_per_second']:>6} {times} {peak:>11}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="what Predictor takes")
    parser.add_argument("--photographs", help="a folder with JPEG files")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--photos", type=int, default=100, help="at most so many different photographs")
    parser.add_argument("--device", default=None)
    parser.add_argument("--name", default=platform.node() or "machine")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    if not args.table:
        record = run(args)
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / f"{args.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table())


if __name__ == "__main__":
    main()
