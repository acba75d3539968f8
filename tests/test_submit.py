"""A job's script asks Slurm for what was said and hands on every word as it is; what is wrong is refused before the queue."""

import subprocess
import time
from pathlib import Path

import pytest
import yaml

from speechlm import submit
from speechlm.cluster.batch_script import MARK, Request, fill, seconds_of
from tests.fit_runs import CONFIG

ROOT = Path(__file__).parents[1]
HOSTILE = "a b;$(touch pwned)'\"%j#`x`&|"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "runs_dir": str(tmp_path / "runs")}))
    return path


def script(capsys: pytest.CaptureFixture[str], *arguments: str) -> Path:
    """The script a command line leads to, submitted to nobody."""
    capsys.readouterr()
    submit.main([*arguments, "--dry-run"])
    return Path(capsys.readouterr().out.rstrip().rsplit("\n-- ", 1)[1])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        submit.main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def header(path: Path) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH ") for line in path.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert len(lines) == len({line.partition("=")[0] for line in lines})
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def words_of_srun(path: Path, tmp_path: Path, **variables: str) -> list[list[str]]:
    """What a script gives to `srun`, with a shell between them; srun takes until the files in BEGUN are there."""
    bin_folder, out = tmp_path / "bin", tmp_path / "words"
    bin_folder.mkdir(exist_ok=True)
    (bin_folder / "srun").write_text(
        f"#!/bin/sh\nprintf '%s\\0' \"$@\" >> '{out}'\nprintf '\\n\\0' >> '{out}'\nenv > '{tmp_path}/env'\n"
        "for file in $BEGUN; do for i in $(seq 400); do [ -s $file ] || sleep 0.05; done; done\n"
    )
    (bin_folder / "srun").chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-8]",
        "SLURM_JOB_NUM_NODES": "8",
        "SLURM_NTASKS_PER_NODE": "4",
    }
    env = {"PATH": f"{bin_folder}:/usr/bin:/bin", **slurm, **variables}
    subprocess.run(["bash", str(path)], env=env, check=True, capture_output=True, cwd="/")
    calls = out.read_bytes().decode().split("\n\0")[:-1]
    return [call.split("\0")[:-1] for call in calls]


def ends(pid: int) -> bool:
    """Whether a process ends within seconds; one that nobody waited for has."""
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


# -- what is written -------------------------------------------------------------------------------------------------------


def test_a_script_asks_for_what_was_said(config: Path, capsys: pytest.CaptureFixture[str]):
    path = script(
        capsys, "--config", str(config), "--nodes", "8", "--gpus-per-node", "4", "--time", "1-12", "--requeue",
        "--partition", "big,small", "--sbatch=--constraint=h100&ib", "--sbatch=--exclusive", "--memory", "480G",
    )  # fmt: skip
    assert path == config.parent / "runs/dummy/slurm/fit.sbatch"
    assert header(path) == {
        "--job-name": "dummy",
        "--nodes": "8",
        "--ntasks-per-node": "4",
        "--gpus-per-node": "4",
        "--cpus-per-task": "8",
        "--mem": "480G",
        "--time": "1-12",
        "--partition": "big,small",
        "--signal": "USR1@180",
        "--output": str(path.with_name("%j.out")),
        "--open-mode": "append",
        "--requeue": "",
        "--dependency": "singleton",
        "--constraint": '"h100&ib"',
        "--exclusive": "",
    }


def test_a_job_on_cpus_asks_for_no_gpu_and_is_not_requeued_unless_that_was_said(
    config: Path, capsys: pytest.CaptureFixture[str]
):
    asked = header(script(capsys, "--config", str(config), "--gpus-per-node", "0", "--processes-per-node", "2"))
    assert "--gpus-per-node" not in asked and asked["--ntasks-per-node"] == "2"
    assert "--requeue" not in asked and "--no-requeue" in asked


def test_every_word_arrives_as_it_was_given(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / HOSTILE
    folder.mkdir()
    hostile = folder / f"{HOSTILE}.yaml"
    hostile.write_text(config.read_text())
    monkeypatch.chdir(folder)
    path = script(
        capsys, "--config", hostile.name, "--config", str(config), "--runs_dir", HOSTILE, "--seed_everything", "0"
    )
    (call,) = words_of_srun(path, tmp_path)
    assert call[call.index("speechlm.fit") + 1 :] == [
        "--config", hostile.name, "--trainer.num_nodes", "8", "--trainer.devices", "4",
        "--config", str(config), "--runs_dir", HOSTILE, "--seed_everything", "0",
    ]  # fmt: skip
    assert not list(tmp_path.rglob("pwned"))
    output = folder / HOSTILE / "dummy/slurm"
    assert header(path)["--output"] == '"' + str(output).replace("%", "%%").replace('"', '\\"') + '/%j.out"'


def test_what_the_submitting_shell_knew_of_its_own_ranks_is_not_handed_on(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    of_a_shell = {"MASTER_ADDR": "elsewhere", "MASTER_PORT": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}
    words_of_srun(script(capsys, "--config", str(config)), tmp_path, **of_a_shell, KEPT="1")
    kept = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert "KEPT" in kept and not kept & set(of_a_shell)


def test_a_doctor_comes_first_and_once_on_every_node(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = script(capsys, "--config", str(config), "--doctor")
    doctor, fit = words_of_srun(path, tmp_path)
    assert "speechlm.doctor" in doctor and "--ntasks=8" in doctor and "--ntasks-per-node=1" in doctor
    assert "speechlm.fit" in fit


def test_an_array_shares_the_work_of_a_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--verb", "tokenize", "--config", "configs/tokenize/emilia.yaml", "--folder", str(tmp_path)]
    path = script(capsys, *arguments, "--array", "64%8")
    asked = header(path)
    assert asked["--array"] == "0-63%8" and asked["--gpus-per-node"] == "1" and "--requeue" in asked
    assert asked["--job-name"] == "tokenize-emilia_tokens-train"
    assert "--dependency" not in asked and "--signal" not in asked  # tasks would wait for each other
    (call,) = words_of_srun(path, tmp_path)
    assert call[-3:] == ["speechlm.tokenize", "--config", "configs/tokenize/emilia.yaml"]


def test_replicas_of_a_server_stand_beside_a_synthesis(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--verb", "synthesize", "--config", "configs/synthesize/fineweb_edu.yaml", "--folder", str(tmp_path)]
    path = script(capsys, *arguments, "--array", "8", "--gpus-per-node", "2", "--model", "my model")
    server = tmp_path / "server"
    server.write_text(
        f"#!/bin/sh\necho $CUDA_VISIBLE_DEVICES \"$4\" $* $$ > '{tmp_path}'/started.$CUDA_VISIBLE_DEVICES\nexec sleep 60\n"
    )
    server.chmod(0o755)
    (call,) = words_of_srun(
        path,
        tmp_path,
        SGLANG_PYTHON=str(server),
        CUDA_VISIBLE_DEVICES="5,6",
        SLURM_GPUS_ON_NODE="2",
        SGLANG_ARGS="--a b",
        BEGUN=f"{tmp_path}/started.5 {tmp_path}/started.6",
    )
    urls = call[call.index("--engine.init_args.urls") + 1]
    assert urls.count("http://127.0.0.1:") == 2
    assert call[call.index("--model") + 1] == "my model"
    for gpu in ("5", "6"):
        started = (tmp_path / f"started.{gpu}").read_text()
        assert started.startswith(f"{gpu} my model ") and "--a b" in started
        assert started.split("--port ")[1].split()[0] in urls
        assert ends(int(started.split()[-1]))  # with the job


def test_a_synthesis_without_servers_starts_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = "configs/synthesize/tiny/fineweb_edu.yaml"
    path = script(capsys, "--verb", "synthesize", "--config", config, "--folder", str(tmp_path))
    (call,) = words_of_srun(path, tmp_path, SGLANG_PYTHON="/bin/false", SLURM_GPUS_ON_NODE="1")
    assert "--engine.init_args.urls" not in call


def test_no_script_touches_slurms_own_variables():
    for template in (ROOT / "slurm").glob("*.sbatch"):
        text = template.read_text()
        assert MARK in text.splitlines()
        assert "export SLURM" not in text and "unset SLURM" not in text and "\nSLURM" not in text, template


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "0"], "--nodes: expected 1 to"),
        (["--nodes", "-3"], "--nodes: expected 1 to"),
        (["--nodes", "many"], "invalid int value: 'many'"),
        (["--gpus-per-node", "800"], "--gpus-per-node: expected 0 to 64, got 800"),
        (["--time", "tomorrow"], "such as 24:00:00"),
        (["--time", "0"], "whole minutes"),
        (["--time", "2"], "must be longer than --save-sec 180"),
        (["--partition", "gpu; rm -rf x"], "--partition: expected letters"),
        (["--memory", "lots"], "such as 480G"),
        (["--array", "4"], "one job, not an array"),
        (["--sbatch=--nodes=4"], "--nodes has an argument of its own"),
        (["--sbatch=rm"], "expected an option of sbatch"),
        (["--template", "nowhere.sbatch"], "no file at nowhere.sbatch"),
        (["--node", "8"], "--node"),
        (["--model.init_args.width", "0.5"], "width"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_absurd_values_are_refused(config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str):
    assert said in refusal(capsys, "--config", str(config), *arguments)
    assert not (config.parent / "runs").exists()


@pytest.mark.parametrize("array", ["0", "-1", "0-63", "4%0", "x", "1,2"])
def test_an_array_is_a_number_of_tasks(capsys: pytest.CaptureFixture[str], array: str):
    config = "configs/tokenize/emilia.yaml"
    assert "--array: expected a number" in refusal(capsys, "--verb", "tokenize", "--config", config, f"--array={array}")


def test_a_config_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]):
    assert "no file at configs/none.yaml" in refusal(capsys, "--config", "configs/none.yaml")


def test_another_number_of_rows_a_step_is_refused_before_the_queue(capsys: pytest.CaptureFixture[str]):
    said = refusal(capsys, "--config", "configs/speech_lm/qwen2.5_1.5b.yaml", "--nodes", "8", "--dry-run")
    assert "1024 rows a step, the config says 512" in said and "--trainer.accumulate_grad_batches 2 fits" in said


def test_without_slurm_the_script_is_there_and_the_error_says_so(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refusal(capsys, "--config", str(config))
    assert "there is no sbatch on this machine" in said and "fit.sbatch" in said
    assert (tmp_path / "runs/dummy/slurm/fit.sbatch").exists()


def test_a_refusal_of_slurm_is_handed_on_with_what_there_is(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, body in {
        "sbatch": "echo 'sbatch: error: invalid partition' >&2; exit 1",
        "sinfo": "echo '  gpu: 4 nodes'",
    }.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    said = refusal(capsys, "--config", str(config), "--partition", "gpus")
    assert "invalid partition" in said and "gpu: 4 nodes" in said


@pytest.mark.parametrize(
    "form", ["--model.init_args.api_key canary-on-the-line", "--model.init_args.api_key=canary-on-the-line"]
)
def test_a_key_on_the_command_line_is_refused_and_written_nowhere(
    config: Path, capsys: pytest.CaptureFixture[str], form: str, tmp_path: Path
):
    said = refusal(capsys, "--config", str(config), *form.split(), "--dry-run")
    assert "leave it to the environment" in said and "canary" not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "canary-on-the" in path.read_text()]


def test_a_key_of_the_environment_stays_there(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-the-environment")
    assert "canary" not in script(capsys, "--config", str(config)).read_text()
    assert "canary" not in refusal(
        capsys, "--config", str(config), "--model.init_args.weights", "canary-of-the-environment"
    )


# -- small parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("90:30", 5430), ("24:00:00", 86400), ("2-12", 216000), ("1-0:30", 88200), ("1-0:0:5", 86405)],
)
def test_slurms_forms_of_a_time(time: str, seconds: int):
    assert seconds_of(time) == seconds


def test_a_template_of_ones_own_keeps_what_was_not_said():
    template = f"#!/bin/bash\n# mine\n#SBATCH --nodes=3\n#SBATCH --exclusive\nmodule load cuda\n{MARK}\nsrun x\n"
    filled = fill(template, Request(nodes=2).directives("n", Path("/l/%j.out")), ["set -- a"])
    assert "--nodes=3" not in filled and "#SBATCH --nodes=2\n" in filled and "#SBATCH --exclusive\n" in filled
    assert filled.index("#SBATCH --exclusive") < filled.index("module load cuda") < filled.index("set -- a\nsrun x")


def test_a_template_without_a_place_for_settings_is_refused():
    with pytest.raises(ValueError, match="where the settings go"):
        fill("#!/bin/bash\nsrun x\n", {}, [])
