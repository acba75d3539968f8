"""torch files and YAML of strangers: nothing runs, nothing unfolds."""

import io
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speechlm import runs
from speechlm.nn.safe_pt import read_pt
from speechlm.safe_yaml import read_yaml


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_what_torch_wrote_is_read_back(tmp_path: Path):
    content = {"a": torch.randn(3, 4), "b": [torch.arange(5)[1:3], {"c": 1.5}], "t": torch.randn(4, 3).T}
    torch.save(content, tmp_path / "x.pt")
    for mmap in (False, True):
        read = read_pt(tmp_path / "x.pt", mmap)
        assert torch.equal(read["a"], content["a"]) and torch.equal(read["b"][0], content["b"][0])
        assert torch.equal(read["t"], content["t"]) and read["b"][1] == {"c": 1.5}


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_pickle_that_does_something_does_nothing(tmp_path: Path, form: str):
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(Touch(canary)))
    else:
        torch.save({"x": Touch(canary)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match="can not be read safely"):
        read_pt(path)
    assert not canary.exists()
    torch.load(path, weights_only=False) if form != "bare pickle" else pickle.loads(path.read_bytes())  # noqa: S301
    assert canary.exists()  # it would have


def test_a_compressed_member_is_not_unfolded(tmp_path: Path):
    torch.save({"x": torch.zeros(2**20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 20_000
    with pytest.raises(ValueError, match="compressed, which torch never writes"):
        read_pt(tmp_path / "bomb.pt")


def test_a_tensor_that_claims_more_than_there_is_is_refused(tmp_path: Path):
    torch.save({"w": torch.zeros(1).expand(10**12)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match="claims 4000000000000 bytes"):
        read_pt(tmp_path / "wide.pt")
    torch.save([[[torch.zeros(2)]]] * 3, tmp_path / "fine.pt")
    assert len(read_pt(tmp_path / "fine.pt")) == 3


def test_containers_without_end_are_refused(tmp_path: Path):
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    torch.save(deep, tmp_path / "deep.pt")
    with pytest.raises(ValueError, match="inside of each other"):
        read_pt(tmp_path / "deep.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_file_cut_short_is_named(tmp_path: Path, keep: float):
    torch.save({"w": torch.randn(1000)}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"x\.pt can not be read safely"):
        read_pt(tmp_path / "x.pt")


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)

HOSTILE = {
    "object": "!!python/object/apply:os.system ['touch canary']",
    "module": "x: !!python/module:os",
    "name": "x: !!python/name:os.system",
    "laughs": LAUGHS,
    "loop": "a: &a [*a]",
    "deep": "[" * 5000,
    "deep map": "".join(f"{' ' * i}a:\n" for i in range(400)),
    "long": "a: " + "x" * 2**21,
    "control": "a: \x00",
    "two": "a: 1\n---\nb: 2",
    "unknown alias": "a: *b",
    "date": "a: 9999-99-99",
    "key": "? [a]\n: 1",
    "tab": "a:\n\t- b",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_yaml_that_does_more_than_say_values_is_refused_at_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(HOSTILE[name])
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"config\.yaml"):
        runs.read_config(tmp_path)
    assert time.monotonic() - begun < 5 and not (tmp_path / "canary").exists()


def test_yaml_with_a_few_aliases_is_read(tmp_path: Path):
    (tmp_path / "x.yaml").write_text("a: &a {lr: 1.0e-3}\nb: *a\nc: [*a, *a]\n")
    assert read_yaml(tmp_path / "x.yaml")["c"] == [{"lr": 1e-3}] * 2
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") is None


def test_hidden_bytes_behind_a_zip_do_not_help(tmp_path: Path):
    canary = tmp_path / "canary"
    packed = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, packed)
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Touch(canary)) + packed.getvalue())
    with pytest.raises(ValueError, match="can not be read safely"):
        read_pt(tmp_path / "x.pt")
    assert not canary.exists()
