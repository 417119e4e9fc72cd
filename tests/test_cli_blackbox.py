"""The command line as a person meets it: real processes, real files, exit codes and words."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PROGRAM = Path(sys.executable).parent / "unified-onehead"
TINY = ["--preset", "smoke", "--weights", "none"]
METRICS = {"mIoU", "AP", "Top1"}


def process(*words, cwd):
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"), "MPLBACKEND": "Agg"}
    return subprocess.run([str(w) for w in words], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def good(*words, cwd):
    "Stdout of a command that must succeed."
    done = process(*words, cwd=cwd)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def snapshot(folder):
    "Every file below `folder` with its bytes."
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def minis(tmp_path_factory):
    "Small synthetic minis, made by the command line."
    folder = tmp_path_factory.mktemp("data")
    good(PROGRAM, "data", "synthetic", folder / "minis", "--train", 16, "--val", 8, "--side", 64, cwd=folder)
    return folder / "minis"


@pytest.fixture(scope="session")
def trained(minis, tmp_path_factory):
    "The folder of a finished run on them, and what it printed."
    folder = tmp_path_factory.mktemp("trained")
    said = good(PROGRAM, "run", *TINY, "--data-root", minis, "--out", folder / "run", "seed=1", cwd=folder)
    return folder / "run", said


@pytest.fixture
def copy(minis, tmp_path):
    "The minis, for a test to break."
    shutil.copytree(minis, tmp_path / "minis")
    return tmp_path / "minis"


def refuses(*words, cwd, mentions, code=2):
    "The command ends with `code` and one paragraph on stderr that holds every word of `mentions`."
    before = snapshot(cwd)
    done = process(*words, cwd=cwd)
    said = done.stderr.strip()
    assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{said}"
    assert "Traceback" not in done.stdout + said
    paragraph = said[said.rindex("error: "):]
    assert "\n\n" not in paragraph
    assert [m for m in mentions if str(m).lower() not in paragraph.lower()] == [], paragraph
    after = snapshot(cwd)
    assert {p: after.get(p) for p in before} == before, "a file was changed"
    return paragraph


def break_one(folder, pattern, content=None):
    "Damage the first file that matches: keep its first bytes only, or write `content`. Returns the file."
    path = sorted(folder.rglob(pattern))[0]
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    return path


def test_help_and_version(tmp_path):
    text = good(PROGRAM, "--help", cwd=tmp_path)
    assert "run" in text and "eval" in text and "data" in text
    text = good(PROGRAM, "run", "--help", cwd=tmp_path)
    assert "epochs_det=" in text and "-----" not in text
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("  ")}
    assert {"naive", "progressive_kd", "joint", "efficientnet_b0", "mobilenet_v2"} <= listed
    assert "  single " in good(PROGRAM, "compare", "--help", cwd=tmp_path)
    assert "(default: all)" in good(PROGRAM, "eval", "--help", cwd=tmp_path)
    assert "(default: 240)" in good(PROGRAM, "data", "synthetic", "--help", cwd=tmp_path)
    assert good(PROGRAM, "--version", cwd=tmp_path).startswith("unified-onehead ")
    assert snapshot(tmp_path) == {}


def test_check_finds_synthetic_minis_sound(minis):
    text = good(PROGRAM, "data", "check", "--data-root", minis, cwd=minis)
    assert "16" in text and "8" in text
    report = json.loads(good(PROGRAM, "data", "check", "--data-root", minis, "--json", cwd=minis))
    assert not report["problems"]


def test_run_leaves_everything_behind(trained):
    folder, said = trained
    for name in ("model.pt", "results.json", "log.jsonl", "report.md"):
        assert (folder / name).stat().st_size > 0, name
    assert any((folder / "figures").iterdir())
    results = json.loads((folder / "results.json").read_text())
    wanted = ("matrix baseline final drop_relative drop_points parameters latency_ms train_seconds "
              "rules config weights data versions").split()
    assert [key for key in wanted if key not in results] == []
    assert METRICS <= set(results["final"]) and list(results["matrix"]) == ["seg", "det", "cls"]
    assert {"name", "limit", "value", "pass"} <= set(results["rules"][0])
    assert results["parameters"] < 8_000_000 and results["config"]["run"]["seed"] == 1
    assert str(folder) in said or folder.name in said
    for line in (folder / "log.jsonl").read_text().splitlines():
        json.loads(line)


def test_never_learned_does_not_pass_as_not_forgotten(trained):
    "One epoch on sixteen pictures learns no detection; that a metric of zero did not fall proves nothing."
    results = json.loads((trained[0] / "results.json").read_text())
    floor = results["floors"]["AP"]
    assert results["baseline"]["AP"] < floor and results["final"]["AP"] < floor
    kept = next(rule for rule in results["rules"] if rule["name"] == "forgetting: AP")
    assert kept["pass"] is False and kept["note"].startswith(f"never learned: below {floor:.4f}"), kept


def test_eval_repeats_the_numbers_of_the_run(trained, minis):
    folder = trained[0]
    final = json.loads((folder / "results.json").read_text())["final"]
    words = ["--weights", folder / "model.pt", "--data-root", minis]
    scores = json.loads(good(PROGRAM, "eval", *words, "--json", cwd=folder))
    assert {m: scores[m] for m in METRICS} == pytest.approx({m: final[m] for m in METRICS}, abs=1e-6)
    assert final["mIoU"] > 0
    text = good(PROGRAM, "eval", *words, "--tasks", "seg", cwd=folder)
    assert text.split() == ["mIoU", f"{final['mIoU']:.4f}"]


def test_the_graders_command(trained, minis):
    folder = trained[0]
    shutil.copy(folder / "model.pt", folder.parent / "your_model.pt")
    os.symlink(minis, folder.parent / "data")
    text = good(sys.executable, ROOT / "eval.py", "--weights", "your_model.pt", "--data_root", "data", "--tasks", "all",
                cwd=folder.parent)
    final = json.loads((folder / "results.json").read_text())["final"]
    shown = dict(line.split() for line in text.splitlines())
    assert set(shown) == {"mAP", "AP50", "mIoU", "Top-1"}
    assert (shown["mIoU"], shown["mAP"], shown["Top-1"]) == tuple(f"{final[m]:.4f}" for m in ("mIoU", "AP", "Top1"))


def test_before_a_run_and_after_it(trained, minis, tmp_path):
    found = json.loads(good(PROGRAM, "doctor", "--quick", "--json", "--data-root", minis, cwd=tmp_path))
    assert found["ok"] and found["preset"] in ("cpu", "t4") and found["seconds"] is None
    assert all(check["state"] in ("ok", "warning") and check["found"] for check in found["checks"]) and snapshot(tmp_path) == {}
    refuses(PROGRAM, "doctor", "--data-root", "nowhere", cwd=tmp_path, mentions=["--data-root nowhere", "no such folder"])
    good(PROGRAM, "handin", trained[0], "--out", "mine.zip", "--notebook", ROOT / "colab.ipynb", cwd=tmp_path)
    shutil.unpack_archive(tmp_path / "mine.zip", tmp_path / "mine")
    assert (tmp_path / "mine/colab.ipynb").read_bytes() == (ROOT / "colab.ipynb").read_bytes()
    text = good(sys.executable, "eval.py", "--weights", "model.pt", "--data_root", minis, "--tasks", "cls", cwd=tmp_path / "mine")
    assert text.split()[0] == "Top-1"
    refuses(PROGRAM, "handin", tmp_path / "mine" / "figures", cwd=tmp_path, mentions=["holds no finished run", "report.md"])


@pytest.mark.parametrize("words", [["run", *TINY], ["data", "check"], ["eval", "--weights", "{model}"]])
def test_missing_folder(words, trained, tmp_path):
    words = [str(trained[0] / "model.pt") if w == "{model}" else w for w in words]
    refuses(PROGRAM, *words, "--data-root", "no_such_folder", cwd=tmp_path, mentions=["no_such_folder"])


def test_wrong_layout_lists_what_is_read_and_what_was_found(tmp_path):
    (tmp_path / "minis/holiday_photos").mkdir(parents=True)
    (tmp_path / "minis/holiday_photos/a.jpg").write_bytes(b"x")
    refuses(PROGRAM, "run", *TINY, "--data-root", "minis", cwd=tmp_path,
            mentions=["labels.json", "SegmentationClass", "holiday_photos"])


@pytest.mark.parametrize("pattern, content", [
    ("mini_coco_det/train/data/*.jpg", None),
    ("labels.json", b'{"images": ['),
    ("SegmentationClass/*.png", "wrong size"),
])
def test_broken_files_are_named(pattern, content, copy):
    if content == "wrong size":
        from PIL import Image
        path = sorted((copy / "mini_voc_seg/train").rglob(pattern))[0]
        Image.open(path).resize((17, 19), 0).save(path)
    else:
        path = break_one(copy, pattern, content)
    refuses(PROGRAM, "run", *TINY, "--data-root", copy, cwd=copy, mentions=[path.name])
    checked = process(PROGRAM, "data", "check", "--data-root", copy, cwd=copy)
    assert checked.returncode in (1, 2) and path.name in checked.stdout + checked.stderr
    assert "Traceback" not in checked.stderr


def test_unknown_class_name(minis, tmp_path):
    refuses(PROGRAM, "run", *TINY, "--data-root", minis, "det_classes=unicorn", cwd=tmp_path, mentions=["unicorn"])
    checked = process(PROGRAM, "data", "check", "--data-root", minis, "--classes", "unicorn", cwd=tmp_path)
    assert checked.returncode in (1, 2) and "unicorn" in checked.stdout + checked.stderr


def test_weights_of_another_network(minis, tmp_path):
    import torch
    torch.save({"layer.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)) * 9)
    refuses(PROGRAM, "run", "--preset", "smoke", "--weights", "other.pt", "--data-root", minis, cwd=tmp_path,
            mentions=["other.pt"])
    for name in ("other.pt", "noise.pt", "absent.pt"):
        refuses(PROGRAM, "eval", "--weights", name, "--data-root", minis, cwd=tmp_path, mentions=[name])


def test_output_folder_in_the_way(minis, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/model.pt").write_text("three days of training")
    (tmp_path / "a_file").write_text("not a folder")
    refuses(PROGRAM, "run", *TINY, "--data-root", minis, "--out", "full", cwd=tmp_path, mentions=["full"])
    refuses(PROGRAM, "run", *TINY, "--data-root", minis, "--out", "a_file/run", cwd=tmp_path, mentions=["a_file"])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="a superuser may write everywhere")
def test_output_folder_without_permission(minis, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    refuses(PROGRAM, "run", *TINY, "--data-root", minis, "--out", "locked/run", cwd=tmp_path, mentions=["locked"])


@pytest.mark.parametrize("word, mentions", [("epoch_det=3", ["epochs_det"]), ("epochs_det=many", ["epochs_det", "int"]),
                                            ("size=100", ["multiple of 32"]), ("strategy=hope", ["progressive_kd"])])
def test_bad_setting(word, mentions, minis, tmp_path):
    refuses(PROGRAM, "run", *TINY, "--data-root", minis, word, cwd=tmp_path, mentions=mentions)
    assert snapshot(tmp_path) == {}


def test_synthetic_never_overwrites_a_persons_files(tmp_path):
    (tmp_path / "mine/mini_voc_seg").mkdir(parents=True)
    (tmp_path / "mine/thesis.txt").write_text("the only copy")
    refuses(PROGRAM, "data", "synthetic", "mine", cwd=tmp_path, mentions=["mine", "thesis.txt"])
    (tmp_path / "mine/mini_voc_seg/labelled_by_hand.png").write_text("a week of work")
    refuses(PROGRAM, "data", "synthetic", "mine", "--overwrite", cwd=tmp_path, mentions=["labelled_by_hand.png"])


def test_unknown_task(trained, minis, tmp_path):
    refuses(PROGRAM, "eval", "--weights", trained[0] / "model.pt", "--data-root", minis, "--tasks", "mAP", cwd=tmp_path,
            mentions=["seg,det,cls"])
