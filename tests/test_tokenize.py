"""The command: the same bytes whoever makes them and however often they are killed, and refusals that name the argument."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

from datamodules.cuts import read_cuts
from datamodules.recordings import load_recording
from datamodules.token_cuts import read_token_cuts, tokens_of
from datamodules.token_folder import TokenFolder
from speechlm import fit, tokenize
from speechlm.load import load_stage
from speechlm.tokenizers import RunTokens
from speechlm.tokens.clock import Clock
from tests.audio_corpus import RATE_HZ, make_corpus, tone
from tests.test_cuts import good_cut, hostile_cuts
from tests.token_corpus import (
    GOLDEN,
    NUM_CUTS,
    NUM_SHARDS,
    content,
    corpus,
    expected_tokens,
    tokenized,
    write_config,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def unbroken(cuts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenized(tmp_path_factory.mktemp("unbroken"), cuts)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that must be refused says; its exit code must be 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        tokenize.main([*arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_every_cut_carries_the_tokens_it_has_alone(cuts: Path, unbroken: Path):
    there = list(read_token_cuts(unbroken))
    assert [cut.id for cut in there] == [cut.id for cut in read_cuts(cuts)]
    for cut in there:
        audio = load_recording(cut, Clock())
        assert np.array_equal(tokens_of(cut), expected_tokens(audio)), cut.id
        assert cut.speech_tokens.frame_shift == 0.08
    assert len({token for cut in there for token in tokens_of(cut)}) > 20


def test_two_ranks_make_the_bytes_that_one_rank_makes(cuts: Path, unbroken: Path, tmp_path: Path):
    for rank in ("1", "0"):
        out = tokenized(tmp_path, cuts, "--rank", rank, "--world_size", "2")
        assert len(TokenFolder.find(out).missing()) == {"1": 3, "0": 0}[rank]
    assert content(out) == content(unbroken)


def test_more_ranks_than_shards_make_the_same_bytes(cuts: Path, unbroken: Path, tmp_path: Path):
    for rank in range(NUM_SHARDS + 2):
        out = tokenized(tmp_path, cuts, "--rank", str(rank), "--world_size", str(NUM_SHARDS + 2))
    assert content(out) == content(unbroken)


def run_once(config: str, *arguments: str) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    tokenize.main(["--config", config, *arguments])


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Processes that were forked when everything was imported, so that a start takes milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_tokenize"])
    return context


def test_ranks_that_start_at_the_same_moment_make_the_same_bytes(
    cuts: Path, unbroken: Path, tmp_path: Path, processes: multiprocessing.context.ForkServerContext
):
    config = str(write_config(tmp_path, cuts))
    ranks = [
        processes.Process(target=run_once, args=(config, "--rank", str(rank), "--world_size", "3")) for rank in range(3)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0, 0]
    assert content(tmp_path / "out") == content(unbroken)


def test_a_plan_counts_and_makes_nothing(cuts: Path, unbroken: Path, tmp_path: Path, capsys):
    out = tokenized(tmp_path, cuts, "--plan_only", "true")
    assert f"{NUM_CUTS} cuts are to become {NUM_SHARDS} shards" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["tokenize.json"]
    assert content(tokenized(tmp_path, cuts)) == content(unbroken)


def test_killed_ten_times_at_random_it_ends_with_the_bytes_of_an_unbroken_run(
    cuts: Path, unbroken: Path, tmp_path: Path, processes: multiprocessing.context.ForkServerContext
):
    """Somewhere in the work on a file: by the clock, a busy machine would always be killed at its start."""
    config, out = str(write_config(tmp_path, cuts)), tmp_path / "out"
    chosen, kills, seen = random.Random(0), 0, set()
    while kills < 10:
        last_file = len(list(out.rglob("*.*"))) + chosen.randint(0, 6)
        process = processes.Process(target=run_once, args=(config,))
        process.start()
        while process.is_alive() and len(list(out.rglob("*.*"))) < last_file:
            time.sleep(0.001)
        time.sleep(chosen.uniform(0.0, 0.02))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            seen.add(len(list(out.glob("commits/*.json"))))
        else:  # it came to its end: begin anew, so that kills hit every part of the work
            assert process.exitcode == 0 and content(out) == content(unbroken)
            shutil.rmtree(out)
    tokenize.main(["--config", config])
    assert content(out) == content(unbroken)
    assert len(list(read_token_cuts(out))) == NUM_CUTS
    assert len(seen) > 1  # killed with this much done and with that


class Killed(BaseException):
    """Not to be caught."""


def test_killed_right_before_any_file_appears_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every moment at which the folder changes, one after another, without waiting for chance."""
    cuts, real, files = make_corpus(tmp_path / "corpus", 7), os.replace, 1 + 2 * 3 + 2  # header, shards, summary
    whole = tokenized(tmp_path / "whole", cuts)
    for moment in range(files):
        left = iter(range(moment))

        def replace(source: str, target: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                shutil.copy(source, f"{source}.part")  # a kill leaves a temporary file behind
                raise Killed
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            tokenized(tmp_path / f"{moment}", cuts)
        monkeypatch.setattr(os, "replace", real)
        assert content(tokenized(tmp_path / f"{moment}", cuts)) == content(whole), moment


def test_a_finished_folder_is_verified_and_kept(cuts: Path, unbroken: Path, tmp_path: Path, capsys):
    shutil.copytree(unbroken, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shar").iterdir()}
    tokenized(tmp_path, cuts)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shar").iterdir()} == before
    assert f"{NUM_CUTS} cuts in = {NUM_CUTS} out + 0 skipped" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["shar/speech_tokens.000001.tar", "shar/cuts.000001.jsonl.gz", "commits/000001.json"])
@pytest.mark.parametrize("harm", ["flipped", "gone"])
def test_the_identical_command_mends_a_damaged_shard_and_no_other(
    cuts: Path, unbroken: Path, tmp_path: Path, name: str, harm: str
):
    out = shutil.copytree(unbroken, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (out / "shar").iterdir()}
    data = bytearray((out / name).read_bytes())
    data[len(data) // 2] ^= 1
    (out / name).unlink() if harm == "gone" else (out / name).write_bytes(data)
    tokenized(tmp_path, cuts)
    assert content(out) == content(unbroken)
    after = {path.name: path.stat().st_mtime_ns for path in (out / "shar").iterdir()}
    assert {key for key in after if after[key] != before[key]} == {"cuts.000001.jsonl.gz", "speech_tokens.000001.tar"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--making.shard_size", "6"], "shard_size: 5 -> 6"),
        (["--making.precision", "bf16"], "settings.precision: float32 -> bf16"),
        (["--making.duration_tolerance_sec", "0.2"], "duration_tolerance_sec: 0.1 -> 0.2"),
    ],
)
def test_other_settings_than_the_folder_was_begun_with_are_refused(
    cuts: Path, unbroken: Path, capsys, arguments: list[str], named: str
):
    config = str(write_config(unbroken.parent, cuts))
    before = content(unbroken)
    said = refusal(capsys, "--config", config, *arguments)
    assert "argument out" in said and named in said
    assert content(unbroken) == before


def test_another_tokenizer_than_the_folder_was_begun_with_is_refused(
    cuts: Path, unbroken: Path, tmp_path: Path, capsys
):
    other = shutil.copytree(GOLDEN, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.encoder.codebook.weight"][3, 5] += 1e-3
    save_file(weights, other / "model.safetensors")
    config = str(write_config(unbroken.parent, cuts))
    said = refusal(capsys, "--config", config, "--tokenizer.init_args.folder", str(other))
    assert "argument out" in said and "tokenizer_hash: 710b2fea58004118 -> " in said


def test_other_cuts_than_the_folder_was_begun_with_are_refused(cuts: Path, tmp_path: Path, capsys):
    manifest = tmp_path / "a.jsonl"
    lines = cuts.read_text().replace('"source": "audio/', f'"source": "{cuts.parent}/audio/').splitlines(keepends=True)
    manifest.write_text("".join(lines[:6]))
    tokenized(tmp_path, manifest)
    manifest.write_text("".join([*lines[1:6], lines[0]]))
    said = refusal(capsys, "--config", str(write_config(tmp_path, manifest)))
    assert "argument out" in said and "manifests.0.2" in said


def test_a_number_that_changes_no_token_may_change(cuts: Path, unbroken: Path, tmp_path: Path):
    out = shutil.copytree(unbroken, tmp_path / "out")
    (out / "commits" / "000003.json").unlink()
    tokenized(tmp_path, cuts, "--making.batch_seconds", "1.5", "--making.decode_threads", "1")
    assert content(out) == content(unbroken)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--cuts", "[nowhere.jsonl]"], "argument cuts: no cut manifest or folder of them at nowhere.jsonl"),
        (["--making.shard_sise", "3"], "shard_sise"),
        (["--making.shard_size", "many"], "shard_size"),
        (["--making.shard_size", "0"], "making.shard_size must be positive"),
        (["--tokenizer.init_args.folder", "nowhere"], "argument tokenizer"),
        (["--tokenizer.class_path", "speechlm.tokens.clock.Clock"], "tokenizer"),
        (["--device", "abacus"], "argument device: 'abacus' is no device"),
        (["--device", "cuda:99"], "argument device: 'cuda:99' is not here"),
        (["--rank", "2", "--world_size", "2"], "argument rank"),
        (["--rank", "2"], "argument rank: rank and world_size are given together"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_written(
    cuts: Path, tmp_path: Path, capsys, arguments: list[str], named: str
):
    said = refusal(capsys, "--config", str(write_config(tmp_path, cuts)), *arguments)
    assert named in said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_written_into(cuts: Path, tmp_path: Path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("dear to somebody")
    said = refusal(capsys, "--config", str(write_config(tmp_path, cuts)))
    assert "argument out" in said and "is not empty" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_manifest_listed_twice_is_refused(cuts: Path, tmp_path: Path, capsys):
    twin = tmp_path / "twin.jsonl"
    twin.write_bytes(cuts.read_bytes())
    said = refusal(capsys, "--config", str(write_config(tmp_path, cuts, cuts=[str(cuts), str(twin)])))
    assert "argument cuts" in said and "has the same cuts as" in said


@pytest.mark.parametrize("name", ["source: command", "source: url", "temporal array: pickle", "source: parent folder"])
def test_a_hostile_manifest_is_refused_with_file_and_line_and_runs_nothing(tmp_path: Path, capsys, name: str):
    canary = tmp_path / "canary"
    soundfile.write(tmp_path / "good.flac", tone(0.5), RATE_HZ)
    hostile = dict(hostile_cuts(canary))[name]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in [{**good_cut(), "id": "first"}, hostile]))
    said = refusal(capsys, "--config", str(write_config(tmp_path, manifest)))
    assert "argument cuts" in said and f"{manifest}:2: " in said
    assert not canary.exists()


# -- configs ---------------------------------------------------------------------------------------------------------------

CONFIGS = sorted((ROOT / "configs" / "tokenize").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_a_config_parses(path: Path):
    config = tokenize.build_parser().parse_args(["--config", str(path)])
    assert config.cuts and config.out and config.tokenizer.class_path


def test_the_tiny_config_tokenizes_with_the_run_of_the_tiny_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(ROOT)
    config = "configs/tokenize/tiny/embedded.yaml"
    run = Path(yaml.safe_load(Path(config).read_text())["tokenizer"]["init_args"]["run"])
    fit.main(
        [
            "--config",
            f"configs/speech_tokenizer/tiny/{run.name.removeprefix('tiny_')}.yaml",
            "--runs_dir",
            str(tmp_path),
        ]
        + ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"]
    )
    arguments = ["--config", config, "--tokenizer.init_args.run", str(tmp_path / run.name)]
    tokenize.main([*arguments, "--out", str(tmp_path / "out")])
    assert "75 cuts in = 75 out + 0 skipped" in capsys.readouterr().out
    tokenizer = load_stage(tmp_path / run.name)
    for cut in list(read_token_cuts(tmp_path / "out"))[:5]:
        audio = torch.from_numpy(load_recording(cut, Clock()))[None]
        expected, _ = tokenizer.tokenize(audio, torch.tensor([audio.shape[1]]))
        assert np.array_equal(tokens_of(cut), expected[0].numpy())
    tokenizer_hash = RunTokens(str(tmp_path / run.name)).hash
    assert TokenFolder.find(tmp_path / "out").header.tokenizer_hash == tokenizer_hash
