"""The doctor finds what would end a run, says what to do, and shows no key."""

import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from speechlm import doctor
from speechlm.checks import data, devices, machine, tracking
from speechlm.checks.finding import Finding, guarded, size
from speechlm.tokens.vocab import Vocab
from tests.fit_runs import CONFIG, write_config

ROOT = Path(__file__).parents[1]
LM = ROOT / "configs/speech_lm/tiny/qwen2.5_1.5b.yaml"


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def lm(tmp_path: Path) -> dict[str, Any]:
    """The tiny language model's config, on rows of its own to damage."""
    shutil.copytree("assets/tiny-rows", tmp_path / "rows")
    return yaml.safe_load(LM.read_text().replace("assets/tiny-rows", str(tmp_path / "rows")))


def of(check: str, findings: Any) -> Finding:
    """The one finding of a check."""
    (found,) = [one for one in findings if one.check == check]
    return found


def test_a_healthy_config_is_told_to_be_one_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    doctor.main(["--config", str(LM), "--runs_dir", str(tmp_path), "--quick", "--json", "-"])
    report = json.loads(capsys.readouterr().out)
    assert report["broken"] == 0
    checks = {one["check"] for one in report["findings"]}
    assert {"packages", "run folder", "disk", "file system", "clock", "limits", "devices", "attention", "W&B"} <= checks
    assert "data assets/tiny-rows/text_heldout" in checks and "model lm" in checks
    assert all(bool(one["advice"]) == (one["status"] != "good") for one in report["findings"])
    assert list(next(tmp_path.iterdir()).iterdir()) == []


def test_what_is_broken_ends_with_1_and_a_table_that_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = write_config(
        tmp_path, data={"class_path": "tests.dummies.DummyData", "init_args": {"path": "corpora/none"}}
    )
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--config", str(config), "--quick", "--json", str(tmp_path / "report.json")])
    assert stopped.value.code == 1
    shown = capsys.readouterr().out
    assert "broken" in shown and "data corpora/none" in shown and "mount it" in shown
    assert json.loads((tmp_path / "report.json").read_text())["broken"] == 1


def test_a_config_that_is_refused_anyway_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--config", str(write_config(tmp_path)), "--model.init_args.width", "wide"])
    assert stopped.value.code == 2 and "width" in capsys.readouterr().err


# -- data ------------------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_changed_bit_in_rows_is_found_by_their_checksums(lm: dict[str, Any], tmp_path: Path):
    (file,) = (tmp_path / "rows/text_train").glob("*.rows")
    flip(file, 200)
    name = f"data {tmp_path}/rows/text_train"
    found = of(name, data.data_is_whole(lm, quick=False))
    assert found.status == "broken" and "damaged" in found.found
    assert of(name, data.data_is_whole(lm, quick=True)).status == "good"  # it says that it looked at headers alone


def test_rows_of_another_vocabulary_are_found(lm: dict[str, Any], tmp_path: Path):
    path = tmp_path / "rows/vocab.json"
    vocab = Vocab.load(path)
    replace(vocab, num_speech=vocab.num_speech + 1).save(path)
    found = list(data.data_is_whole(lm, quick=True))
    assert {one.status for one in found} == {"broken"} and "packed for the vocabulary" in found[0].found


def test_rows_cut_short_and_rows_that_are_gone_are_found(lm: dict[str, Any], tmp_path: Path):
    (file,) = (tmp_path / "rows/text_train").glob("*.rows")
    file.write_bytes(file.read_bytes()[:-100])
    shutil.rmtree(tmp_path / "rows/text_heldout")
    by_name = {one.check: one for one in data.data_is_whole(lm, quick=True)}
    assert by_name[f"data {tmp_path}/rows/text_train"].status == "broken"
    assert "not there" in by_name[f"data {tmp_path}/rows/text_heldout"].found


def test_recordings_are_decoded_not_only_listed(tmp_path: Path):
    shutil.copytree("assets/asterisk-en", tmp_path / "speech")
    source = {"path": str(tmp_path / "speech/heldout.jsonl.gz"), "language": "en"}
    config = {**CONFIG, "data": {"init_args": {"train": [source]}}}
    name = f"data {source['path']}"
    assert of(name, data.data_is_whole(config, quick=True)).status == "good"
    for path in sorted((tmp_path / "speech").rglob("*.ogg"))[::2]:
        path.write_bytes(b"<html>404</html>")
    found = of(name, data.data_is_whole(config, quick=True))
    assert found.status in ("mind", "broken") and "can not be used" in found.found


def test_weights_cut_short_and_weights_that_are_nowhere_are_found(tmp_path: Path):
    shutil.copytree("assets/whisper-nano-en", tmp_path / "whisper")
    config = {"model": {"init_args": {"whisper": str(tmp_path / "whisper")}}}
    (file,) = (tmp_path / "whisper").glob("*.safetensors")
    assert "3.6 M numbers" in of("model whisper", data.weights_are_there(config)).found
    assert data.checkpoint_bytes(config) == pytest.approx(12 * 3.6e6, rel=0.03)
    file.write_bytes(file.read_bytes()[:-1])
    assert "its header says" in of("model whisper", data.weights_are_there(config)).found
    nowhere = of("model lm", data.weights_are_there({"model": {"init_args": {"lm": "nobody/nothing"}}}))
    assert nowhere.status == "broken" and "hf download nobody/nothing" in nowhere.advice


# -- machine ---------------------------------------------------------------------------------------------------------------


def test_a_run_folder_that_can_not_be_made_is_found(tmp_path: Path):
    (tmp_path / "runs").write_text("a file")
    found = of("run folder", machine.folder_is_writable(tmp_path / "runs" / "x"))
    assert found.status == "broken" and "--runs_dir" in found.advice


def test_a_disk_too_small_for_the_checkpoints_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=80 * 2**30))
    assert of("disk", machine.disk_is_large_enough(tmp_path / "not/yet", 15 * 2**30, 3)).status == "good"
    small = of("disk", machine.disk_is_large_enough(tmp_path, 20 * 2**30, 3))
    assert small.status == "broken" and "need 100.0 GiB" in small.found
    assert of("disk", machine.disk_is_large_enough(tmp_path, 1e9, -1)).status == "mind"


def test_a_slow_file_system_and_a_wrong_clock_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "SLOW_WRITE", 1.0)
    assert of("file system", machine.file_system_is_fast(tmp_path, 1)).status == "good"
    monkeypatch.setattr(machine, "SLOW_WRITE", 1e15)
    assert of("file system", machine.file_system_is_fast(tmp_path, 1)).status == "mind"
    assert of("clock", machine.clock_is_right(tmp_path)).status == "good"
    now = time.time
    monkeypatch.setattr(machine.time, "time", lambda: now() + 100.0)
    skewed = of("clock", machine.clock_is_right(tmp_path))
    assert skewed.status == "mind" and "100.0 s" in skewed.found
    assert list(tmp_path.iterdir()) == []


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch: pytest.MonkeyPatch):
    wanted = ["torch>=99", "no-such-package", "numpy>=1", 'only-for-tests ; extra == "dev"']
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda _: wanted)
    found = of("packages", machine.packages_fit())
    assert found.status == "broken" and f"torch is {torch.__version__}, expected >=99" in found.found
    assert "no-such-package is missing" in found.found and "numpy" not in found.found and "only-for" not in found.found


def test_narrow_limits_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (256, 1024))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1})
    found = list(machine.limits_are_wide(8))
    assert [one.status for one in found] == ["mind", "broken", "mind"]
    assert "ulimit -n 1024" in found[0].advice and "--shm-size" in found[1].advice


# -- devices ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
def test_gpus_that_are_not_there_are_found_and_a_cpu_is_fine_where_it_was_asked_for():
    assert of("devices", devices.gpus_are_there("gpu", 8)).status == "broken"
    assert of("devices", devices.gpus_are_there("auto", 0)).status == "mind"
    assert of("devices", devices.gpus_are_there("cpu", 2)).status == "good"


def test_attention_is_tried_against_the_plain_form(monkeypatch: pytest.MonkeyPatch):
    assert of("attention", devices.attention_works("auto")).status == "good"
    assert of("attention", guarded("attention", lambda: devices.attention_works("none"))).status == "broken"
    right = devices.document_mask

    def leaks(doc_ids: torch.Tensor, attention: Any) -> Any:
        return right(doc_ids if attention == "sdpa" else torch.zeros_like(doc_ids), attention)

    monkeypatch.setattr(devices, "document_mask", leaks)
    assert of("attention", devices.attention_works("varlen")).status == "broken"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
def test_two_processes_add_up_and_one_that_dies_is_found(monkeypatch: pytest.MonkeyPatch):
    found = of("Gloo", devices.processes_talk(2))
    assert found.status == "good" and "sums of 16 MiB" in found.found
    monkeypatch.setattr(devices.sys, "executable", "/bin/false")
    dead = of("Gloo", devices.processes_talk(2))
    assert dead.status == "broken" and "2 of 2 processes failed: exit code 1" in dead.found


# -- W&B -------------------------------------------------------------------------------------------------------------------

ONLINE = [{"class_path": "callbacks.wandb_log.WandbLog", "init_args": {"offline": False}}]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes requests and never answers."""
    done = threading.Event()

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            done.wait(30)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    done.set()
    server.shutdown()
    server.server_close()


def test_w_and_b_needs_a_key_only_where_it_is_online(online: None):
    missing = of("W&B", tracking.wandb_is_ready(ONLINE))
    assert missing.status == "broken" and "wandb login" in missing.advice
    offline = [{"class_path": "callbacks.wandb_log.WandbLog", "init_args": {"offline": True}}]
    assert of("W&B", tracking.wandb_is_ready(offline)).status == "good"
    assert of("W&B", tracking.wandb_is_ready([])).status == "good"


def test_a_server_that_refuses_or_hangs_is_told_in_time_and_no_key_with_it(
    online: None, silent: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-the-doctor")
    monkeypatch.setattr(tracking, "TIMEOUT_SEC", 0.5)
    for address in ("http://127.0.0.1:9", silent):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        began = time.monotonic()
        found = of("W&B", tracking.wandb_is_ready(ONLINE))
        assert found.status == "mind" and "wandb sync" in found.advice and "canary" not in str(found)
        assert time.monotonic() - began < 10.0


def test_a_key_in_netrc_counts(online: None, tmp_path: Path):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert tracking._has_key("https://api.wandb.ai") and not tracking._has_key("https://elsewhere.org")


# -- small parts -----------------------------------------------------------------------------------------------------------


def test_a_check_that_fails_itself_is_a_finding():
    def fails() -> Iterator[Finding]:
        yield Finding("x", "good", "so far")
        raise OSError("the disk\nwent away")

    good, broken = guarded("x", fails)
    assert good.status == "good" and broken.status == "broken" and "OSError: the disk went away" in broken.found


def test_sizes_for_people():
    assert [size(n) for n in (12, 2048, 3.5 * 2**20, 2**40)] == ["12 B", "2 KiB", "3.5 MiB", "1.0 TiB"]
