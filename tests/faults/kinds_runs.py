"""What runs and models may meet: files of weights that are something else, folders that somebody else holds."""
import functools
import json
import multiprocessing
import os
import pickle
import platform
import time

import torch
from kinds import kind, printable, refused, refused_or, works

from unified_onehead.core.config import preset, replace_fields
from unified_onehead.core.files import InputError
from unified_onehead.learn.checkpoint import load_model, save_model
from unified_onehead.model.net import build_network, class_counts
from unified_onehead.run.claim import FRESH, OWNER, claimed, own_mark
from unified_onehead.run.folder import read_log

NAMES = {"seg": ["background", "a"], "det": ["a", "b"], "cls": ["a", "b"]}


def saved(tmp):
    "A whole model file as the dict that it holds."
    path = tmp / "whole.pt"
    if not path.exists():
        cfg = replace_fields(preset("smoke"), width=24, backbone="mobilenet_v2")
        save_model(path, build_network(cfg, class_counts(NAMES))[0], cfg, NAMES)
    return torch.load(path, weights_only=True)


@kind("models", "a model file with keys and values of other kinds", "refused with its name")
def odd_models(tmp):
    def state(change):
        def changed(whole):
            whole["state_dict"] = change(dict(whole["state_dict"]))
            return whole
        return changed

    first = next(iter(saved(tmp)["state_dict"]))
    changes = {
        "integer keys in the weights": state(lambda s: {k: v for k, v in enumerate(s.values())}),
        "one integer key more": state(lambda s: {**s, 3: torch.zeros(1)}),
        "a tuple as key": state(lambda s: {**s, (1, 2): torch.zeros(1)}),
        "None as key": state(lambda s: {**s, None: torch.zeros(1)}),
        "text for a tensor": state(lambda s: {**s, first: "x"}),
        "a number for a tensor": state(lambda s: {**s, first: 1.5}),
        "a list for a tensor": state(lambda s: {**s, first: [1.0]}),
        "a tensor of another shape": state(lambda s: {**s, first: torch.zeros(1)}),
        "whole numbers for weights": state(lambda s: {**s, first: s[first].to(torch.int8)}),
        "complex weights": state(lambda s: {**s, first: s[first].to(torch.complex64)}),
        "NaN in a weight": state(lambda s: {**s, first: s[first] * float("nan")}),
        "a tensor missing": state(lambda s: {k: v for k, v in s.items() if k != first}),
        "no tensors": state(lambda s: {}),
        "weights that are a list": lambda w: {**w, "state_dict": [1]},
        "weights that are None": lambda w: {**w, "state_dict": None},
        **{f"classes {c!r}": functools.partial(lambda w, c: {**w, "classes": c}, c=c) for c in (
            None, [], {}, {"seg": ["a"]}, {"seg": 2, "det": 2, "cls": 2}, {"seg": ["a", 1], "det": ["a", "b"], "cls": ["a", "b"]},
            {"seg": ["a", "b"], "det": [], "cls": ["a", "b"]}, {"seg": "ab", "det": "ab", "cls": "ab"},
            {1: ["a"], 2: ["b"], 3: ["c"]},
            {**NAMES, "more": ["x"]})},
        **{f"config {c!r}": functools.partial(lambda w, c: {**w, "config": c}, c=c) for c in (
            None, [], {}, {"run": 3}, {1: {2: 3}}, {"run": {"seed": "x"}}, {"run": {3: 4}})},
        **{f"{key} missing": functools.partial(lambda w, key: {k: v for k, v in w.items() if k != key}, key=key) for key in (
            "config", "classes", "state_dict", "backbone", "frozen", "format")},
        **{f"backbone {b!r}": functools.partial(lambda w, b: {**w, "backbone": b}, b=b) for b in (
            None, 3, "resnet", [1], "\x1b[2J")},
        **{f"frozen {f!r}": functools.partial(lambda w, f: {**w, "frozen": f}, f=f) for f in ("x", -5, 10**9, [1])},
        **{f"format {f!r}": functools.partial(lambda w, f: {**w, "format": f}, f=f) for f in (None, 3, "other", {})},
        "a list": lambda w: [w], "a number": lambda w: 3, "nothing": lambda w: {},
        "integer keys": lambda w: {1: torch.zeros(2), 2: {3: 4}}}
    for number, (words, change) in enumerate(changes.items()):
        path = tmp / f"{number}.pt"
        torch.save(change(saved(tmp)), path)
        yield words, refused(functools.partial(load_model, path), path.name)


@kind("models", "class names of a model that command a terminal", "read as one clean line each")
def odd_class_names(tmp):
    for name in ("a\n# b", "\x1b[31m", "\x07", "\u202ex", "\u2028", "\udcff"):
        def call(name=name):
            path = tmp / "odd.pt"
            torch.save({**saved(tmp), "classes": {**NAMES, "det": [name, "b"]}}, path)
            return load_model(path)[2]["det"]
        yield repr(name), refused_or(call, lambda names: all(map(printable, names)))


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/unified-onehead-was-here",)


@kind("models", "a file that is no model", "refused with what it is, without running anything in it")
def no_models(tmp):
    whole = (saved(tmp), (tmp / "whole.pt").read_bytes())[1]
    for number, raw in enumerate((b"", b"x", bytes(100), b"<!doctype html>", b"\x89PNG\r\n\x1a\n", b"%PDF",
                                  pickle.dumps(Evil()), pickle.dumps([1]), b"PK",
                                  b"PK\3\4", whole[:100], whole[:len(whole) // 2], whole[:-1], whole[1:], b"{}", b"[" * 10**5,
                                  b"\x1f\x8b\x08",
                                  b"\x80\x02.", b"GGUF", b"\x93NUMPY")):
        path = tmp / f"{number}.pt"
        path.write_bytes(raw)
        yield f"{raw[:15]!r} .. of {len(raw)} bytes", refused(functools.partial(load_model, path), path.name)
    torch.save({"state_dict": Evil()}, tmp / "evil.pt")
    yield "code inside", refused(functools.partial(load_model, tmp / "evil.pt"), "evil.pt")
    yield "nothing was run", works(lambda: os.path.exists("/tmp/unified-onehead-was-here"), False)
    for name in ("pipe", "folder", "gone"):
        path = tmp / f"{name}.pt"
        {"pipe": os.mkfifo, "folder": os.mkdir, "gone": lambda path: None}[name](path)
        yield name, refused(functools.partial(load_model, path), path.name)


def start(folder, gate, leave, results):
    "A run that begins: claims a folder, and holds it until it may leave."
    gate.wait()
    try:
        with claimed(folder):
            results.put("in")
            leave.wait()
    except InputError:
        results.put("refused")
    except BaseException as error:  # told to the test
        results.put(repr(error))


@kind("runs", "several starts in one folder at the same moment", "one is let in")
def starts_at_once(tmp):
    fork = multiprocessing.get_context("fork")
    for number in range(10):
        def call(number=number):
            folder = tmp / f"run{number}"
            folder.mkdir()
            gate, leave, results = fork.Event(), fork.Event(), fork.Queue()
            starts = [fork.Process(target=start, args=(folder, gate, leave, results)) for _ in range(3)]
            for process in starts:
                process.start()
            gate.set()
            found = sorted(results.get(timeout=300) for _ in starts)
            leave.set()
            for process in starts:
                process.join()
            return found, [p.name for p in folder.iterdir()]
        yield f"three starts, round {number + 1}", works(call, (["in", "refused", "refused"], []))


def comes_to(tmp, written=None, **mark):
    "Whether a start is let into a folder where somebody left this mark."
    path = tmp / OWNER
    path.write_text(json.dumps({**own_mark(), **mark}))
    if written is not None:
        os.utime(path, (time.time() + written,) * 2)
    try:
        with claimed(tmp):
            return True
    except InputError as error:
        assert printable(str(error)) and "another process writes there" in str(error)
        return False


@kind("runs", "a mark of a machine whose clock is wrong", "a run that lives is left alone, one that is gone locks nobody out")
def wrong_clocks(tmp):
    day, gone = 86_400, -FRESH - 5
    for ahead in (FRESH + 60, 3600, day, 30 * day, 10**10):
        mark = dict(host="elsewhere", time=time.time() + ahead)
        yield f"{ahead} s ahead, renewed now", works(functools.partial(comes_to, tmp, 0, **mark), False)
        yield f"{ahead} s ahead, renewed long ago", works(functools.partial(comes_to, tmp, gone, **mark), True)
        yield f"{ahead} s ahead, its file too", works(functools.partial(comes_to, tmp, ahead, **mark), True)
    yield "right, renewed now", works(lambda: comes_to(tmp, host="elsewhere"), False)
    yield "right, renewed long ago", works(lambda: comes_to(tmp, host="elsewhere", time=time.time() + gone), True)


@kind("runs", "a container of the same host name, with process numbers of its own", "a run that lives is left alone")
def containers(tmp):
    for pid in (1, 2, os.getpid(), os.getppid(), 2**22 + 7):
        yield f"process {pid}, renewed now", works(functools.partial(comes_to, tmp, space="another", pid=pid), False)
        past = dict(space="another", pid=pid, time=time.time() - FRESH - 5)
        yield f"process {pid}, renewed long ago", works(functools.partial(comes_to, tmp, **past), True)
    yield "this very process", works(lambda: comes_to(tmp), True)
    yield "a process that was killed", works(lambda: comes_to(tmp, pid=2**22 + 7), True)


@kind("runs", "a mark that is damaged", "counts as nobody's")
def odd_marks(tmp):
    for text in ("", "{", "[]", "3", "null", "{}", '{"host": 3}', '{"host": "x"}', '{"host": "x", "pid": "1", "time": 0}',
                 "[" * 10**5,
                 '{"host": "x", "pid": 1, "time": "now"}', '{"host": "x", "pid": 1, "time": null}',
                 '{"host": "x", "pid": 1.5, "time": 1}', "\x00",
                 *(json.dumps({"host": platform.node(), "pid": pid, "time": time.time()}) for pid in (-1, 10**30))):
        def call(text=text):
            (tmp / OWNER).write_text(text)
            with claimed(tmp):
                return True
        yield f"{text[:30]!r}", works(call, True)


@kind("runs", "a log with rows that are none", "the rows that are whole are read")
def odd_logs(tmp):
    good = {"stage": 0, "epoch": 1, "loss": 2.0}
    for odd in ("", "{", '{"sta', "[" * 10**5, "\x00", "x"):
        def call(odd=odd):
            (tmp / "log.jsonl").write_text(json.dumps(good) + "\n" + odd + "\n")
            return read_log(tmp / "log.jsonl")
        yield f"{odd[:20]!r}", works(call, [good])
