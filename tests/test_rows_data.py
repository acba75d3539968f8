"""The stream of rows: the same for every world size, resumed exactly, mixed as the config says."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import nn

from callbacks.checkpoint import CheckpointIO, Checkpoints
from datamodules.mixture import Anneal, Lesson, RowSource, shares
from datamodules.rows import RowsDataModule
from speechlm.batch import RowBatch
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab
from tests.row_corpus import PAD, ROW_LEN, VOCAB, write_folder


class Memory(L.LightningModule):
    """Remembers the first id of every row it is given."""

    def __init__(self, vocab: Vocab = VOCAB) -> None:
        super().__init__()
        self.vocab = vocab
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch: RowBatch, batch_idx: int) -> torch.Tensor:
        """A loss of no meaning."""
        self.seen.append(batch.ids[:, 0].tolist())
        return self.weight.sum() + batch.ids.sum()

    def validation_step(self, batch: RowBatch, batch_idx: int) -> None:
        """Nothing."""
        self.validated += batch.ids[:, 0].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any."""
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Three sources whose ids tell them apart: 0 to 39, 100 to 129, 200 to 204."""
    sizes = {"text": ([20, 20], 0), "mixed": ([10, 10, 10], 100), "pairs": ([5], 200)}
    return {name: str(write_folder(tmp_path / name, rows, first)) for name, (rows, first) in sizes.items()}


def module(folders: dict[str, str], **changes: Any) -> RowsDataModule:
    """30 % text, one epoch of pairs, the rest mixed, in 100 rows."""
    sources = [
        RowSource(folders["text"], weight=0.3),
        RowSource(folders["mixed"], rest=True),
        RowSource(folders["pairs"], epochs=1),
    ]
    settings: dict[str, Any] = {"total_tokens": 100 * ROW_LEN, "train": sources, **changes}
    return RowsDataModule(Clock(), **settings)


def trained(data: RowsDataModule, folder: Path, steps: int, resume: Path | None = None, **trainer: Any) -> Memory:
    """A memory of `steps` optimizer steps, saved as `folder/last.ckpt`."""
    stage = Memory()
    made = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        **trainer,
    )
    made.fit(stage, datamodule=data, ckpt_path=resume, weights_only=False)
    made.save_checkpoint(folder / "last.ckpt")
    return stage


def first_ids(data: RowsDataModule, monkeypatch: pytest.MonkeyPatch, world: int) -> list[int]:
    """The whole stream as `world` ranks read it, micro-batch by micro-batch."""
    monkeypatch.setattr(data, "_world", lambda: world)
    ranks = []
    for rank in range(world):
        monkeypatch.setattr(data, "_rank", lambda rank=rank: rank)
        ranks.append([batch.ids[:, 0].tolist() for batch in data.train_dataloader()])
    return [row for batches in zip(*ranks, strict=True) for batch in batches for row in batch]


def test_the_papers_recipe_text_fixed_an_epoch_of_pairs_the_rest_interleaved(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    data = module(folders)
    ids = first_ids(data, monkeypatch, 1)
    counts = Counter(i // 100 for i in ids)
    assert counts == {0: 30, 1: 65, 2: 5}
    assert sorted(i for i in ids if i >= 200) == [200, 201, 202, 203, 204]
    assert max(Counter(i for i in ids if i // 100 == 1).values()) == 3
    assert data.stream.order.seen(100).tolist() == [30, 65, 5]


@pytest.mark.parametrize(("world", "batch_rows"), [(2, 1), (4, 1), (1, 4), (2, 2), (5, 4)])
def test_every_world_size_reads_the_same_stream(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, world: int, batch_rows: int
):
    alone = first_ids(module(folders), monkeypatch, 1)
    assert first_ids(module(folders, batch_rows=batch_rows), monkeypatch, world) == alone


def test_rows_that_do_not_fill_a_batch_of_all_ranks_are_left_at_the_end(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    assert len(first_ids(module(folders), monkeypatch, 3)) == 99


def test_a_batch_says_what_is_predicted_where_documents_are_and_where_from(folders: dict[str, str]):
    batch = next(iter(module(folders, batch_rows=3, prefetch=0).train_dataloader()))
    assert batch.ids.dtype == torch.int64 and batch.loss_mask.dtype == torch.bool and batch.doc_ids.dtype == torch.int32
    for row in range(3):
        assert batch.doc_ids[row].tolist() == [0] * 5 + [1] * 8 + [-1] * 3
        assert batch.loss_mask[row].nonzero()[:, 0].tolist() == [1, 2, 3, 4, 9, 10, 11, 12]
        assert batch.position_ids[row].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]
        assert batch.ids[row, 13:].tolist() == [PAD] * 3
    assert batch.source_ids.tolist() == [int(i) // 100 for i in batch.ids[:, 0]]
    assert batch.sources == ["text", "mixed", "pairs"]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_resumed_run_trains_the_rows_that_an_unbroken_one_would(
    folders: dict[str, str], tmp_path: Path, prefetch: int, accumulate: int
):
    def data() -> RowsDataModule:
        return module(folders, batch_rows=2, prefetch=prefetch)

    whole = trained(data(), tmp_path, 12, accumulate_grad_batches=accumulate).seen
    first = trained(data(), tmp_path, 5, accumulate_grad_batches=accumulate).seen
    second = trained(data(), tmp_path, 9, tmp_path / "last.ckpt", accumulate_grad_batches=accumulate).seen
    third = trained(data(), tmp_path, 12, tmp_path / "last.ckpt", accumulate_grad_batches=accumulate).seen
    assert first + second + third == whole and len(whole) == 12 * accumulate


def test_a_run_resumed_with_other_batches_goes_on_at_the_same_row(folders: dict[str, str], tmp_path: Path):
    whole = trained(module(folders), tmp_path, 24).seen
    first = trained(module(folders, batch_rows=4, step_rows=4), tmp_path, 2).seen
    resume = tmp_path / "last.ckpt"
    second = trained(module(folders, batch_rows=2, step_rows=4), tmp_path, 4, resume, accumulate_grad_batches=2).seen
    third = trained(module(folders, batch_rows=1, step_rows=4), tmp_path, 6, resume, accumulate_grad_batches=4).seen
    flat = [row for batches in (first, second, third) for batch in batches for row in batch]
    assert flat == [row for batch in whole for row in batch]


def test_epochs_cut_short_by_the_trainer_follow_each_other_in_the_stream(folders: dict[str, str], tmp_path: Path):
    whole = trained(module(folders), tmp_path, 12).seen
    parts = trained(module(folders), tmp_path, 12, limit_train_batches=5, max_epochs=3).seen
    assert parts == whole


def test_a_resumed_run_says_that_the_rows_are_not_those_it_began_with(folders: dict[str, str], tmp_path: Path):
    trained(module(folders), tmp_path, 2)
    write_folder(Path(folders["pairs"]), [6], 300)
    with pytest.warns(UserWarning, match=r"the order of the rows is not that of the checkpoint \(files changed\)"):
        trained(module(folders), tmp_path, 4, tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match=r"\(seed changed\)"):
        trained(module(folders, seed=5), tmp_path, 4, tmp_path / "last.ckpt")


def test_rows_per_step_that_the_ranks_do_not_give_are_refused_with_advice(folders: dict[str, str], tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"1 ranks × batch_rows 2 × accumulate_grad_batches 1 are 2 rows .* set .* to 4"
    ):
        trained(module(folders, batch_rows=2, step_rows=8), tmp_path, 1)
    with pytest.raises(ValueError, match="choose ranks and batch_rows whose product divides 8"):
        trained(module(folders, batch_rows=3, step_rows=8), tmp_path, 1)


def test_annealing_ends_with_another_mixture(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    data = module(folders, anneal=Anneal(0.2, {"pairs": 0.5, "mixed": 0.5}))
    ids = first_ids(data, monkeypatch, 1)
    assert len(ids) == 100
    assert Counter(i // 100 for i in ids[:80]) == {0: 24, 1: 51, 2: 5}
    assert Counter(i // 100 for i in ids[80:]) == {1: 10, 2: 10}


def test_a_curriculum_cuts_rows_and_loses_no_id(folders: dict[str, str]):
    short = list(module(folders, batch_rows=2, curriculum=[Lesson(0.1, 4), Lesson(0.5, 8)]).train_dataloader())
    whole = list(module(folders, batch_rows=2).train_dataloader())
    assert [tuple(batch.ids.shape) for batch in short] == [(8, 4)] * 5 + [(4, 8)] * 20 + [(2, 16)] * 25
    for a, b in zip(short, whole, strict=True):
        assert torch.equal(a.ids.reshape(b.ids.shape), b.ids)
        assert a.num_tokens == b.num_tokens and len(a.source_ids) == len(a)
        assert not a.loss_mask[:, 0].any() and not a.loss_mask[a.position_ids == 0].any()
        assert (a.loss_mask.reshape(b.ids.shape) <= b.loss_mask).all()
    assert short[0].doc_ids[:4].tolist() == [[0] * 4, [0, 1, 1, 1], [0] * 4, [0, -1, -1, -1]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_sees_every_row_once_and_ranks_have_as_many_batches(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, world: int
):
    data = module(folders, val={"held out": folders["mixed"]}, val_rows=25, batch_rows=4)
    monkeypatch.setattr(data, "_world", lambda: world)
    batches = []
    for rank in range(world):
        monkeypatch.setattr(data, "_rank", lambda rank=rank: rank)
        batches.append(list(data.val_dataloader()[0]))
    assert len({len(mine) for mine in batches}) == 1
    rows = [(batch, i) for mine in batches for batch in mine for i in range(len(batch))]
    real = [int(batch.ids[i, 0]) for batch, i in rows if batch.doc_ids[i, 0] >= 0]
    assert sorted(real) == list(range(100, 125))
    empty = [(batch.loss_mask[i], batch.ids[i]) for batch, i in rows if batch.doc_ids[i, 0] < 0]
    assert len(empty) == len(rows) - 25 and not any(mask.any() or ids.any() for mask, ids in empty)
    assert batches[0][0].sources == ["held out"]


def test_another_vocabulary_is_refused_with_both_hashes(folders: dict[str, str], tmp_path: Path):
    other = Vocab(num_text=1000, num_speech=64, text_tokenizer="others")
    data = module({**folders, "text": str(write_folder(tmp_path / "other", [3], vocab=other))})
    with pytest.raises(ValueError, match=rf"other was made with vocabulary {other.hash}, this run has {VOCAB.hash}"):
        trained(data, tmp_path, 1)


def test_another_token_rate_is_refused(folders: dict[str, str]):
    data = RowsDataModule(Clock(token_rate_hz=25), [RowSource(folders["text"], weight=1.0)])
    with pytest.raises(ValueError, match=r"12\.5 speech tokens per second, the clock of this run 25"):
        data.setup()


def test_a_flipped_bit_stops_training_or_is_found_before_it(folders: dict[str, str], tmp_path: Path):
    path = Path(folders["text"]) / "00001.rows"
    damaged = bytearray(path.read_bytes())
    damaged[64 + 7 * ROW_LEN * 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"00001\.rows .* row 7 .* is not what was written"):
        trained(module(folders, train=[RowSource(folders["text"], weight=1.0)]), tmp_path, 40)
    with pytest.raises(ValueError, match="the section ids is not what was written"):
        module(folders, verify=True).setup()


SOURCES = {"a": RowSource("a", weight=0.5), "b": RowSource("b", weight=0.6), "rest": RowSource("r", rest=True)}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a", r"the weights sum to 0\.5 instead of 1, and no source takes the rest: a 0\.5"),
        ("ab", r"the weights sum to 1\.1 instead of 1"),
        (["a", "b", "rest"], r"weights and epochs take 1\.1 of the rows and leave no rest"),
    ],
)
def test_weights_that_do_not_add_up_are_refused(names: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        shares([SOURCES[name] for name in names], [10] * len(names), None)


@pytest.mark.parametrize("fields", [{}, {"weight": 0.5, "rest": True}, {"weight": -1.0}, {"epochs": float("nan")}])
def test_a_source_has_one_share(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=r"one of weight, epochs and rest|numbers of at least 0"):
        RowSource("a", **fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_tokens": None}, "total_tokens must be given: epochs of pairs"),
        ({"train": []}, "lists no source"),
        ({"batch_rows": 0}, "batch_rows must be at least 1"),
        ({"anneal": Anneal(0.1, {"song": 1.0})}, r"anneal\.weights names \['song'\]; the sources are \['text'"),
        ({"anneal": Anneal(0.1, {"text": 0.9})}, "sum to 1"),
        ({"curriculum": [Lesson(0.5, 8), Lesson(0.4, 4)]}, "ascending"),
        ({"curriculum": [Lesson(0.5, 5)]}, "must divide the rows' 16 ids, got 5"),
        ({"total_tokens": 17.0}, "less than two rows"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(folders: dict[str, str], changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        module(folders, **changes).setup()


def test_a_source_listed_twice_is_refused(folders: dict[str, str]):
    with pytest.raises(ValueError, match="every source may be listed once"):
        module(
            folders, train=[RowSource(folders["text"], weight=0.5), RowSource(folders["text"], weight=0.5, name="b")]
        )


def test_rows_of_different_lengths_do_not_mix(folders: dict[str, str], tmp_path: Path):
    longer = str(write_folder(tmp_path / "longer", [2], row_len=32))
    with pytest.raises(ValueError, match=r"rows of one length, got {'text': 16, 'longer': 32}"):
        module(folders, train=[RowSource(folders["text"], weight=0.5), RowSource(longer, weight=0.5)]).setup()


def test_the_mask_and_ids_are_the_files_in_every_row(folders: dict[str, str]):
    data = module(folders, batch_rows=5, prefetch=0)
    for number, batch in enumerate(data.train_dataloader()):
        sources, rows = data.stream.order.at(5 * number, 5)
        for i, (source, row) in enumerate(zip(sources, rows, strict=True)):
            stored = data.stream.folders[source].row(int(row))
            assert np.array_equal(stored.ids, batch.ids[i].numpy())


def test_the_recipe_in_the_docs_is_one_that_the_data_module_takes():
    page = (Path(__file__).parents[1] / "docs" / "rows.md").read_text(encoding="utf-8")
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])["data"]["init_args"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RowsDataModule, "data")
    data = parser.instantiate(parser.parse_object({"data": {**settings, "clock": {}}})).data
    sizes = [10**8, 10**8, 3_845_000, 900_000, 900_000, 45_000_000, 45_000_000]
    weights = dict(zip([s.label for s in data.sources], shares(data.sources, sizes, int(1e12 // 8192)), strict=True))
    assert weights["text_en"] + weights["text_zh"] == pytest.approx(0.3)
    assert weights["speech"] == pytest.approx(3_845_000 * 8192 / 1e12, rel=1e-3)
    assert weights["interleaved_en"] == weights["interleaved_zh"] and sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("step", [2, 3])
def test_checkpoints_saved_inside_training_resume_at_the_next_row(folders: dict[str, str], tmp_path: Path, step: int):
    def run(name: str, steps: int, resume: Path | None = None) -> list[list[int]]:
        stage = Memory()
        saved = Checkpoints(str(tmp_path / name), every_n_steps=1, keep=-1)
        trainer = L.Trainer(
            max_steps=steps, accelerator="cpu", devices=1, logger=False, callbacks=[saved], plugins=[CheckpointIO()],
            limit_val_batches=1,
            val_check_interval=4, check_val_every_n_epoch=None, num_sanity_val_steps=0, accumulate_grad_batches=2,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        data = module(folders, val={"held out": folders["mixed"]})
        trainer.fit(stage, datamodule=data, ckpt_path=resume, weights_only=False)
        return stage.seen

    whole = run("whole", 6)
    resumed = run("resumed", 6, tmp_path / "whole" / f"step-{step:08d}.ckpt")
    assert resumed == whole[2 * step :]
