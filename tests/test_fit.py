"""The command that trains: what it refuses and names, what it leaves behind, and that going on is as good as never stopping."""

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from callbacks.jsonl import read_metrics
from speechlm import fit, runs
from speechlm.tokens.vocab import Vocab
from tests.fit_runs import CONFIG, refusal, run, write_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return runs.read_weights(path)


def assert_same_weights(one: Path, other: Path) -> None:
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(other)[name], rtol=0, atol=0)


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model.init_args.widht", "8"], "widht"),
        (["--model.init_args.width", "wide"], "width"),
        (["--model.init_args.width", "0"], "width must be at least 1"),
        (["--model.class_path", "tests.dummies.NoStage"], "model"),
        (["--trainer.max_stpes", "8"], "max_stpes"),
        (["--trainer.max_steps", "many"], "trainer.max_steps"),
        (["--clock.token_rate_hz", "13"], "whole number of samples"),
        (["--clock.token_rate_hz", "fast"], "clock.token_rate_hz"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--init_from", "nowhere.ckpt"], "--init_from"),
        (["--ckpt_path", "nowhere.ckpt"], "--ckpt_path"),
        (["--data.init_args.path", "nowhere.jsonl.gz"], "data.init_args.path"),
        (["--name", "../elsewhere"], "name"),
        (["--checkpoint.keep", "0"], "keep"),
        (["trainer.max_steps=8"], "trainer.max_steps=8"),
    ],
)
def test_a_wrong_argument_ends_with_code_2_and_is_named(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert named in refusal(capsys, write_config(tmp_path), *arguments)
    assert not list((tmp_path / "runs").glob("**/*.ckpt"))


def test_a_key_of_the_file_that_nothing_knows_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = write_config(tmp_path, model={**CONFIG["model"], "init_args": {"width": 4, "depth": 2}})
    assert "depth" in refusal(capsys, config)


def test_what_a_constructor_refuses_is_told_without_the_parser_s_wrapping(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    said = refusal(capsys, write_config(tmp_path), "--model.init_args.width", "0")
    assert said.splitlines()[-1] == "error: width must be at least 1, got 0"
    said = refusal(capsys, write_config(tmp_path), "--model.init_args.weights", "no/such/folder")
    assert said.splitlines()[-1] == "error: argument model.init_args.weights: no weights in no/such/folder"
    said = refusal(capsys, write_config(tmp_path), "--model.init_args.weights", "hub/name")
    assert said.splitlines()[-1] == "error: argument model.init_args.weights (hub/name): the hub does not answer"


def test_a_run_without_a_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "name" in refusal(capsys, write_config(tmp_path, name=None))


def test_a_config_can_not_build_python_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "run.yaml"
    config.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/hostile']\n", encoding="utf-8")
    refusal(capsys, config)
    assert not (tmp_path / "hostile").exists()


# -- what a run leaves -----------------------------------------------------------------------------------------------------


def test_a_run_folder_says_what_was_run_with_what_and_how_it_went(tmp_path: Path):
    folder = run(write_config(tmp_path))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["init_args"]["lr"] == 0.1  # defaults are written out
    assert config["clock"] == {"sample_rate_hz": 16_000, "token_rate_hz": 12.5, "hop_samples": 160}
    origin = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    assert origin["packages"]["torch"] == torch.__version__
    assert origin["hardware"]["cores"] > 0 and origin["command"][0] == "speechlm.fit" and len(origin["starts"]) == 1
    assert Vocab.load(folder / "vocab.json") == Vocab(num_text=0, num_speech=8, controls=())
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "last.ckpt",
        "step-00000002.ckpt",
        "step-00000004.ckpt",
    ]
    assert list(read_metrics(folder)["train/loss"]) == [0, 1, 2, 3]


def test_nothing_that_the_parser_calls_old_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit.build(["--config", str(write_config(tmp_path))])
    assert not [str(one.message) for one in said if "instantiate_classes" in str(one.message)]


def test_the_written_config_starts_the_same_run(tmp_path: Path):
    first = run(write_config(tmp_path))
    fit.main(["--config", str(first / "config.yaml"), "--name", "again"])
    assert_same_weights(first / "checkpoints/last.ckpt", tmp_path / "runs/again/checkpoints/last.ckpt")


def test_no_file_of_a_run_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-in-the-environment")
    logger = {"class_path": "callbacks.wandb_log.WandbLog", "init_args": {"offline": True}}
    config = write_config(tmp_path, trainer={**CONFIG["trainer"], "logger": logger})
    secret = "--model.init_args.api_key=canary-on-the-command-line"
    monkeypatch.setattr("sys.argv", ["fit", "--config", str(config), secret])
    fit.main()
    folder = tmp_path / "runs/dummy"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert b"canary" not in path.read_bytes(), path


def test_a_checkpoint_loads_without_trusting_it_and_bears_the_vocabulary(tmp_path: Path):
    folder = run(write_config(tmp_path))
    content = runs.read_checkpoint(folder / "checkpoints/last.ckpt")
    assert content["vocab_hash"] == Vocab.load(folder / "vocab.json").hash


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    folder = run(write_config(tmp_path, checkpoint={"every_n_steps": 1, "keep": 2}), "--trainer.max_steps", "5")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "last.ckpt",
        "step-00000004.ckpt",
        "step-00000005.ckpt",
    ]
    assert (folder / "checkpoints/last.ckpt").resolve().name == "step-00000005.ckpt"


# -- going on --------------------------------------------------------------------------------------------------------------


def test_the_same_command_goes_on_and_ends_where_an_unbroken_run_ends(tmp_path: Path):
    config = write_config(tmp_path)
    unbroken = run(config, "--name", "unbroken", "--model.init_args.dropout", "0").parent / "unbroken"
    broken = run(config, "--trainer.max_steps", "2", "--model.init_args.dropout", "0")
    assert run(config, "--model.init_args.dropout", "0") == broken
    assert_same_weights(unbroken / "checkpoints/last.ckpt", broken / "checkpoints/last.ckpt")
    starts = json.loads((broken / "env.json").read_text(encoding="utf-8"))["starts"]
    assert [Path(start["resumed_from"] or "").name for start in starts] == ["", "step-00000002.ckpt"]
    assert list(read_metrics(broken)["train/loss"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_a_resumed_run_logs_and_validates_at_the_steps_of_an_unbroken_one(interval: int, tmp_path: Path):
    trainer = {**CONFIG["trainer"], "limit_val_batches": 1, "val_check_interval": interval}
    config = write_config(tmp_path, trainer=trainer)
    run(config, "--trainer.max_steps", "2")
    seen = read_metrics(run(config, "--trainer.max_steps", "6"))
    assert list(seen["train/loss"]) == [0, 1, 2, 3, 4, 5]
    assert list(seen["val/dummy/loss"]) == list(range(interval - 1, 6, interval))


@pytest.mark.parametrize(
    "limit", [["--trainer.max_steps", "4"], ["--trainer.max_epochs", "1", "--trainer.max_steps", "-1"]]
)
def test_a_finished_run_says_so_and_touches_nothing(
    limit: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    config = write_config(tmp_path, data={"class_path": "tests.dummies.DummyData", "init_args": {"num_batches": 4}})
    folder = run(config, *limit)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    said: list[str] = []
    monkeypatch.setattr(fit, "rank_zero_info", said.append)
    run(config, *limit)
    assert "is finished" in said[0]
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path):
    config = write_config(tmp_path)
    folder = run(config)
    shard = folder / "checkpoints/step-00000004.ckpt/shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="step-00000004"):
        found = runs.newest_checkpoint(folder)
    assert found is not None and found.step == 2


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    class Hostile:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "hostile",)

    torch.save({"state_dict": {}, "global_step": 2, "loops": Hostile()}, tmp_path / "hostile.ckpt")
    for argument in ("--ckpt_path", "--init_from"):
        assert "hostile.ckpt" in refusal(capsys, write_config(tmp_path), argument, str(tmp_path / "hostile.ckpt"))
    assert not (tmp_path / "hostile").exists()


def test_a_changed_setting_is_refused_on_resuming_until_it_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = write_config(tmp_path)
    folder = run(config, "--trainer.max_steps", "2")
    changed = ["--model.init_args.lr", "0.01"]
    said = refusal(capsys, config, *changed)
    assert "model.init_args.lr: 0.1 -> 0.01" in said and "--allow_config_change" in said
    refusal(capsys, config, *changed, "--allow_config_change", "[model.init_args.width]")
    run(config, *changed, "--allow_config_change", "[model.init_args.lr]")
    start = json.loads((folder / "env.json").read_text(encoding="utf-8"))["starts"][-1]
    assert start["changes"] == {"model.init_args.lr": [0.1, 0.01]}
    run(config, *changed, "--trainer.max_steps", "5")  # the change now is the run's own


def test_settings_of_speed_and_length_may_change_freely(tmp_path: Path):
    config = write_config(tmp_path)
    run(config, "--trainer.max_steps", "2")
    run(config, "--data.init_args.num_workers", "1", "--trainer.log_every_n_steps", "2")


def test_another_run_goes_on_from_a_given_checkpoint_until_it_has_its_own(tmp_path: Path):
    config = write_config(tmp_path)
    first = run(config, "--trainer.max_steps", "2") / "checkpoints/step-00000002.ckpt"
    branch = ["--name", "branch", "--ckpt_path", str(first)]
    run(config, *branch)
    run(config, *branch, "--trainer.max_steps", "6")
    starts = json.loads((tmp_path / "runs/branch/env.json").read_text(encoding="utf-8"))["starts"]
    assert [Path(start["resumed_from"]).name for start in starts] == ["step-00000002.ckpt", "step-00000004.ckpt"]


def test_another_vocabulary_is_refused_whatever_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = write_config(tmp_path)
    first = run(config, "--trainer.max_steps", "2") / "checkpoints/step-00000002.ckpt"
    other = ["--model.init_args.codes", "16", "--allow_config_change", "true"]
    assert "vocab.json was made with vocabulary" in refusal(capsys, config, *other)
    branch = ["--name", "branch", "--ckpt_path", str(first)]
    assert "the checkpoint was made with vocabulary" in refusal(capsys, config, *other, *branch)


def test_going_back_inside_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = write_config(tmp_path)
    early = run(config) / "checkpoints/step-00000002.ckpt"
    assert "another --name" in refusal(capsys, config, "--ckpt_path", str(early))


def test_two_ranks_under_torchrun_write_one_run(tmp_path: Path):
    gloo = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"process_group_backend": "gloo"}}
    config = write_config(tmp_path, trainer={**CONFIG["trainer"], "devices": 2, "strategy": gloo})
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "speechlm.fit", "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/dummy"
    assert json.loads((folder / "env.json").read_text(encoding="utf-8"))["world_size"] == 2
    lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [0, 1, 2, 3]
    found = runs.newest_checkpoint(folder)
    assert found is not None and found.step == 4


# -- starting from weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ckpt", "safetensors", "folder"])
def test_a_run_can_start_from_the_weights_of_another(form: str, tmp_path: Path):
    config = write_config(tmp_path)
    source = run(config).parent / "dummy/checkpoints/last.ckpt"
    if form != "ckpt":
        save_file(weights(source), tmp_path / "model.safetensors")
    given = {"ckpt": source, "safetensors": tmp_path / "model.safetensors", "folder": tmp_path}[form]
    cli = fit.build(["--config", str(config), "--name", "next", "--init_from", str(given), "--model.init_args.lr", "0"])
    cli.fit()
    assert cli.trainer.global_step == 4  # from step 0, not from 4
    assert_same_weights(source, tmp_path / "runs/next/checkpoints/last.ckpt")


def test_weights_that_do_not_fit_are_refused_with_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = {"net.0.weight": torch.zeros(3, 1), "net.0.bias": torch.zeros(4), "net.9.weight": torch.zeros(2)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    said = refusal(capsys, write_config(tmp_path), "--init_from", str(tmp_path / "wrong.safetensors"))
    assert "--init_from" in said and "missing: net.3.weight (1, 4)" in said
    assert "not in the model: net.9.weight (2,)" in said
    assert "shape of net.0.weight: model (4, 1), file (3, 1)" in said
