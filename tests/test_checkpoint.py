"""The form of checkpoints: what comes back, what is refused, and that a kill at any point leaves one to go on from."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed.checkpoint import load as dcp_load

from callbacks.checkpoint import superseded
from callbacks.preemption import requeue_job
from speechlm.checkpoint import random_state, resume, state, tree
from speechlm.checkpoint.form import Damaged, checkpoints_in, read_manifest, step_name
from speechlm.checkpoint.read import Shards, fill, read_rest, read_tensors, verify
from speechlm.checkpoint.write import Box, HostCopy, boxes, commit, write_part


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Of several types, one tied to another, one without numbers."""
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 4, generator=made)
    return {
        "state_dict.weight": weight,
        "state_dict.tied": weight,
        "state_dict.half": torch.randn(3, generator=made).bfloat16(),
        "state_dict.flags": torch.tensor([True, False]),
        "state_dict.count": torch.tensor(2**40 + seed),
        "state_dict.empty": torch.zeros(0, 3),
        "optimizer_states.0.weight/exp_avg": torch.randn(6, 4, generator=made).T,
    }


def write(folder: Path, step: int = 1, seed: int = 0, **more: Any) -> Path:
    """A checkpoint of one rank."""
    copy, own = HostCopy(), {"rest.0.sums": torch.arange(3)}
    copy.take(boxes({**tensors(seed), **own}, first=True))
    temporary, place = folder / f".{step_name(step)}.{seed}.part", folder / step_name(step)
    write_part(temporary, 0, copy, {"step": step, "sums": {"$tensor": "rest.0.sums"}})
    commit(temporary, place, step, 1, "hash", **more)
    return place


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


# -- what comes back -------------------------------------------------------------------------------------------------------


def test_every_number_comes_back_and_no_file_is_a_pickle(tmp_path: Path):
    place = write(tmp_path)
    same(read_tensors(place), tensors())
    assert read_rest(place)["sums"].tolist() == [0, 1, 2] and read_rest(place)["step"] == 1
    manifest = verify(place)
    assert manifest.step == 1 and manifest.vocab_hash == "hash"
    assert sorted(file.name for file in place.iterdir()) == [
        "COMMIT", "manifest.json", "rank-00000.json", "shard-00000.safetensors"
    ]  # fmt: skip
    for file in place.iterdir():
        assert not file.read_bytes().startswith((b"\x80", b"PK")), file


def test_a_shard_is_read_by_the_library_of_its_form_and_holds_tied_weights_once(tmp_path: Path):
    stored = load_file(write(tmp_path) / "shard-00000.safetensors")
    assert len({"state_dict.weight", "state_dict.tied"} & stored.keys()) == 1
    assert torch.equal(stored["state_dict.half"], tensors()["state_dict.half"])


def test_torchs_own_distributed_loading_reads_it(tmp_path: Path):
    wanted = {"state_dict.weight": torch.zeros(6, 4)}
    dcp_load(wanted, storage_reader=Shards(write(tmp_path)), no_dist=True)
    assert torch.equal(wanted["state_dict.weight"], tensors()["state_dict.weight"])


@given(st.integers(0, 7), st.lists(st.integers(0, 7), max_size=3))
@settings(max_examples=25, deadline=None)
def test_what_ranks_wrote_in_rows_is_one_tensor_again(
    tmp_path_factory: pytest.TempPathFactory, rows: int, cuts: list[int]
):
    folder, whole = tmp_path_factory.mktemp("rows"), torch.randn(rows, 3)
    ends = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    for rank, (begin, end) in enumerate(itertools.pairwise(ends)):
        box = Box(whole[begin:end], (begin, 0), (rows, 3))
        copy = HostCopy()
        copy.take({"state_dict.x": box} if end > begin or rank == 0 else {})
        write_part(folder / ".part", rank, copy, {"rank": rank})
    commit(folder / ".part", folder / step_name(1), 1, len(ends) - 1)
    assert torch.equal(read_tensors(folder / step_name(1))["state_dict.x"], whole)
    assert [read_rest(folder / step_name(1), rank) for rank in range(len(ends) - 1)] == [
        {"rank": rank} for rank in range(len(ends) - 1)
    ]


def test_what_was_copied_is_written_whatever_becomes_of_it_meanwhile(tmp_path: Path):
    live, copy = torch.zeros(4), HostCopy()
    copy.take(boxes({"state_dict.x": live}, first=True))
    live.fill_(7)
    write_part(tmp_path / ".part", 0, copy, {})
    commit(tmp_path / ".part", tmp_path / step_name(1), 1, 1)
    assert read_tensors(tmp_path / step_name(1))["state_dict.x"].tolist() == [0] * 4


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.just("$tensor"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(plain)
def test_plain_values_keep_value_and_type(value: Any):
    found = tree.decode(json.loads(json.dumps(tree.encode(value, {}))), {})
    assert repr(found) == repr(value)


def test_counters_tensors_arrays_and_odd_floats_keep_theirs():
    put: dict[str, torch.Tensor] = {}
    value = {"c": Counter({3: 2}), "t": torch.ones(2), "a": np.arange(3), "n": float("nan"), "s": {1, 2}}
    found = tree.decode(json.loads(json.dumps(tree.encode(value, put))), put)
    assert type(found["c"]) is Counter and found["c"] == value["c"] and found["s"] == {1, 2}
    assert torch.equal(found["t"], torch.ones(2)) and found["a"].tolist() == [0, 1, 2] and found["n"] != found["n"]


def test_what_only_a_pickle_could_hold_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"function at rest\.callbacks\.Guard\.1"):
        tree.encode({"callbacks": {"Guard": [0, lambda: 0]}}, {})


def test_an_optimizer_goes_by_names_and_comes_back_by_numbers():
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.Adam([{"params": [parameters[1]]}, {"params": [parameters[0]], "lr": 0.5}])
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    contents = {"state_dict": {}, "optimizer_states": [optimizer.state_dict()], "epoch": 3}
    shared, own, rest = state.split(contents, [[["b"], ["a"]]], 0)
    assert shared["optimizer_states.0.a/exp_avg"].shape == (2,)
    found = state.joined(shared, tree.decode(json.loads(json.dumps(rest)), own))
    assert found["epoch"] == 3
    torch.testing.assert_close(found["optimizer_states"][0], optimizer.state_dict(), rtol=0, atol=0)


def test_random_numbers_go_on_where_they_were():
    saved: dict[str, torch.Tensor] = {}
    encoded = json.dumps(tree.encode(random_state.capture(), saved))
    drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]
    random_state.restore(tree.decode(json.loads(encoded), saved))
    assert [float(torch.rand(())), float(np.random.rand()), random.random()] == drawn
    first = tree.decode(json.loads(encoded), saved)
    draws = []
    for rank in (1, 2, 1):
        random_state.derive(first, rank)
        draws.append(float(torch.rand(())))
    assert draws[0] == draws[2] != draws[1]


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_no_flipped_bit_goes_unnoticed(seed: int, tmp_path: Path):
    place, dice = write(tmp_path), random.Random(seed)
    file = dice.choice(sorted(place.iterdir()))
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)
    for read in (verify, lambda place: (read_tensors(place), read_rest(place))):
        with pytest.raises(Damaged, match="is not what was written"):
            read(place)


@pytest.mark.parametrize("name", ["COMMIT", "manifest.json", "rank-00000.json", "shard-00000.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut", "longer"])
def test_a_file_that_is_missing_cut_or_longer_is_seen_without_reading_it(name: str, how: str, tmp_path: Path):
    file = write(tmp_path) / name
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] if how == "cut" else file.read_bytes() + b"0")
    with pytest.raises(Damaged):
        read_manifest(file.parent)


def test_damage_on_one_rank_leaves_the_tensors_of_all_untouched(tmp_path: Path):
    wanted = {"state_dict.weight": torch.full((6, 4), 7.0)}
    with pytest.raises(Damaged, match="another rank"):
        fill(write(tmp_path), wanted, agree=lambda ok: False)
    assert (wanted["state_dict.weight"] == 7).all()


def test_another_shape_and_another_format_are_said(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"shape of state_dict.weight: \(4, 6\) is wanted, the checkpoint has \(6, 4\)"
    ):
        fill(write(tmp_path), {"state_dict.weight": torch.zeros(4, 6)})
    with pytest.raises(ValueError, match="missing: nothing"):
        fill(tmp_path / step_name(1), {"nothing": torch.zeros(1)})


def test_the_newest_whole_one_is_taken_and_the_others_are_named(tmp_path: Path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    shard = tmp_path / step_name(3) / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    (tmp_path / step_name(2) / "COMMIT").unlink()
    with pytest.warns(UserWarning, match="passed over") as said:
        assert resume.newest_whole(tmp_path / step_name(3), tmp_path, verify).step == 1
    assert "step-00000003" in str(said[0].message) and "step-00000002" in str(said[1].message)
    with pytest.raises(Damaged):  # what was asked for by name is not replaced by another
        resume.newest_whole(tmp_path / step_name(3), None, verify)


# -- killed in between -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As good as a signal: nothing that would tidy up runs."""


@pytest.mark.parametrize("point", ["parts", "manifest", "aside", "moved", "marked"])
@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_any_point_leaves_a_whole_checkpoint(point: str, again: bool, tmp_path: Path):
    """Of a new step, and of one that takes the place of an older one of the same step."""

    def at(reached: str) -> None:
        if reached == point:
            raise Killed

    write(tmp_path, 1, seed=1)
    if again:
        write(tmp_path, 2, seed=2)
    with pytest.raises(Killed):
        write(tmp_path, 2, seed=3, at=at)
    with pytest.warns(UserWarning, match="passed over") if point == "moved" else pytest.MonkeyPatch.context():
        found = resume.newest_whole(checkpoints_in(tmp_path)[0], tmp_path, lambda path: (verify(path), path)[1])
    expected = 3 if point == "marked" else 2 if again else 1
    same(read_tensors(found), tensors(expected))
    write(tmp_path, 2, seed=4)
    same(read_tensors(tmp_path / step_name(2)), tensors(4))
    assert [path.name for path in checkpoints_in(tmp_path)] == [step_name(2), step_name(1)]


def test_old_ones_go_by_rule_and_damaged_ones_do_not_count(tmp_path: Path):
    for step in range(1, 9):
        write(tmp_path, step)
    (tmp_path / step_name(7) / "COMMIT").unlink()
    newest = tmp_path / step_name(8)
    gone = superseded(tmp_path, newest, keep=2, milestone_every=4)
    assert [path.name for path in gone] == [step_name(step) for step in (5, 3, 2, 1)]
    assert superseded(tmp_path, newest, keep=-1) == []


# -- told to stop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({"SLURM_JOB_ID": "17"}, "17"),
        ({"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}, "17_3"),
        ({"SLURM_JOB_ID": "17; rm"}, None),
        ({}, None),
    ],
)
def test_slurm_is_asked_once_and_for_the_right_job(environ: dict[str, str], asked: str | None):
    calls = []

    def call(command: list[str], **_: Any) -> Any:
        calls.append(command)
        return type("Done", (), {"returncode": 0, "stderr": ""})

    said = requeue_job(environ, call)
    assert calls == ([["scontrol", "requeue", asked]] if asked else [])
    assert ("is queued again" in said) == (asked is not None)
