"""The wheel: it works outside the repository."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from speechlm import start

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in tracked.decode().split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(("tests/golden", "docs/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    code = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_a_wheel_holds_every_module_and_config_and_no_test(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    modules = [
        path.relative_to(ROOT).as_posix()
        for folder in ("speechlm", "datamodules", "callbacks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    tracked = set(
        subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    )
    assert [name for name in modules if name in tracked and name not in names] == []
    configs = [name for name in tracked if name.startswith("configs/")]
    assert configs and [name for name in configs if f"speechlm/shipped/{name}" not in names] == []
    assert not [name for name in names if name.startswith("tests/") or "/tests/" in name]


def test_a_project_started_from_the_wheel_checks_a_config(wheel: Path, tmp_path: Path):
    unpacked, project = tmp_path / "site", tmp_path / "project"
    zipfile.ZipFile(wheel).extractall(unpacked)
    python = [sys.executable, "-c"]
    env = {"PYTHONPATH": str(unpacked), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    run = f"import runpy, sys; sys.argv = ['start', {str(project)!r}]; runpy.run_module('speechlm.start', run_name='__main__')"
    subprocess.run([*python, run], check=True, env=env, cwd=tmp_path)
    config = "configs/speech_tokenizer/embedded.yaml"
    check = f"import sys; sys.argv = ['fit', '--config', {config!r}, '--print_config']; from speechlm import fit; fit.main()"
    shown = subprocess.run([*python, check], env=env, cwd=project, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "assets/whisper-nano-en" in shown.stdout


def test_a_folder_that_is_started_again_keeps_what_was_edited(tmp_path: Path):
    copied = start.start(tmp_path)
    edited = tmp_path / "configs" / "speech_tokenizer" / "embedded.yaml"
    assert edited in copied
    edited.write_text("mine")
    (tmp_path / "slurm" / "tokenize.sbatch").unlink()
    again = start.start(tmp_path)
    assert edited.read_text() == "mine"
    assert again == [tmp_path / "slurm" / "tokenize.sbatch"]


def test_version_and_licence_are_said_in_one_way_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {project['version']}" in citation
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert project["license"] in citation
