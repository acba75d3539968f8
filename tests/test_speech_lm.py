"""The language model's stage: every id weighs the same wherever it is computed, and what must not be trained on is not."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import FSDPStrategy
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from callbacks.jsonl import JsonlLogger, read_metrics
from speechlm import runs, shards
from speechlm.batch import RowBatch
from speechlm.fsdp2 import FSDP2
from speechlm.nn.lora import Lora, LoraLinear, merge_lora
from speechlm.stages.optim import AdamWSettings
from speechlm.stages.speech_lm import SpeechLM
from tests import two_ranks
from tests.tiny_lm import CONFIGS, VOCAB, Gradients, Rows, random_rows, tiny_stage

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*weights_only.*")
FAST = AdamWSettings(lr=2e-2, betas=(0.9, 0.95), decay="constant", weight_decay=0.0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the ranks have it: the bias of keys has no gradient but what rounding leaves, of which AdamW makes steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def fit(stage: SpeechLM, batches: list[RowBatch], folder: Path, steps: int = 1, **settings: Any) -> L.Trainer:
    """Train on given micro-batches, in one process."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=settings.pop("devices", 1),
        max_steps=steps,
        default_root_dir=folder,
        logger=settings.pop("logger", False),
        log_every_n_steps=settings.pop("log_every_n_steps", 1),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(stage, datamodule=Rows(batches), ckpt_path=None)
    return trainer


def gradients(stage: SpeechLM, batches: list[RowBatch], folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """What the optimizer of the first step is given."""
    seen = Gradients()
    fit(stage, batches, folder, callbacks=[seen], limit_val_batches=0, **settings)
    return seen.of[0]


def one_batch(batches: list[RowBatch]) -> RowBatch:
    first = batches[0]
    ids, masks, docs, sources = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("ids", "loss_mask", "doc_ids", "source_ids")
    )
    return RowBatch(ids, masks, docs, sources, first.sources, first.languages)


# -- two ranks are one -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes under FSDP2 left behind."""
    return launched(tmp_path_factory.mktemp("two"), 2)


def launched(folder: Path, ranks: int, *cases: str) -> Path:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launch, "-m", "tests.two_ranks", str(folder), *cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", two_ranks.CASES)
def test_two_ranks_compute_what_one_rank_computes(name: str, two: Path, tmp_path: Path):
    """With a tied head, chunked loss, layers computed twice, averaged weights, clipped gradients, and a rank without losses."""
    theirs = torch.load(two / "ranks.pt", weights_only=True)[name]
    ours = two_ranks.run(tmp_path, name, 1)
    close = {"rtol": 0.1, "atol": 0.03} if name == "mixed" else {"rtol": 1e-5, "atol": 1e-7}
    assert len(ours["gradients"]) == len(theirs["gradients"]) == 2
    for mine, other in zip(ours["gradients"], theirs["gradients"], strict=True):
        assert mine.keys() == other.keys() and any("embed_tokens" in key for key in mine)
        for key in mine:
            torch.testing.assert_close(other[key], mine[key], equal_nan=True, **close, msg=lambda m, k=key: f"{k}: {m}")
    torch.testing.assert_close(theirs["used"], ours["used"], **close)
    if "gradient_clip_val" in two_ranks.CASES[name][3]:
        assert theirs["metrics"]["train/grad_norm"] > 0.1 and float(theirs["used"]) == pytest.approx(0.05, rel=1e-4)
    assert ours["skipped"] == theirs["skipped"] == (name.startswith("nan"))
    for key, value in ours["metrics"].items():
        torch.testing.assert_close(theirs["metrics"][key], value, rtol=1e-2 if name == "mixed" else 1e-5, atol=1e-3)
    for key, value in ours["state"].items():
        torch.testing.assert_close(theirs["state"][key], value, rtol=1e-3, atol=1e-3 if name == "mixed" else 1e-7)


@pytest.mark.usefixtures("one_thread")
def test_two_groups_of_two_ranks_compute_what_one_rank_computes(tmp_path: Path):
    """Weights are whole in each group, and the clipped gradient is that of all four."""
    theirs = torch.load(launched(tmp_path, 4, "untied") / "ranks.pt", weights_only=True)["untied"]
    ours = two_ranks.run(tmp_path, "untied", 1)
    assert "(Replicate(), Shard(dim=0))" in theirs["placements"]
    for mine, other in zip(ours["gradients"], theirs["gradients"], strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-5, atol=1e-7)
    assert float(theirs["used"]) == pytest.approx(0.05, rel=1e-4)
    torch.testing.assert_close(theirs["state"], ours["state"], rtol=1e-3, atol=1e-7)
    stage = tiny_stage(tmp_path, "glm", False)
    runs.load_weights(stage, tmp_path / "sharded.ckpt")
    torch.testing.assert_close(dict(stage.state_dict()), theirs["state"], rtol=0, atol=0)


def test_a_group_that_does_not_divide_the_ranks_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="shard_size must divide the 1 ranks of the job, got 3"):
        fit(tiny_stage(tmp_path), two_ranks.batches(1), tmp_path, strategy=FSDP2(shard_size=3), devices=1)


def test_a_checkpoint_in_shards_is_the_model_and_its_average(two: Path, tmp_path: Path):
    state = torch.load(two / "ranks.pt", weights_only=True)["tied"]["state"]
    kind, tied, settings, _ = two_ranks.CASES["tied"]
    stage = tiny_stage(tmp_path, kind, tied, **settings)
    runs.load_weights(stage, two / "sharded.ckpt")
    for name, value in stage.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert any(name.startswith("ema.") for name in state)
    assert runs.inspect_checkpoint(two / "sharded.ckpt").step == 2


@pytest.mark.parametrize("damage", ["hostile", "torn", "no shard", "short shard"])
def test_damaged_and_hostile_shards_are_refused_before_anything_runs(damage: str, two: Path, tmp_path: Path):
    folder = tmp_path / "c.ckpt"
    folder.mkdir()
    for file in (two / "sharded.ckpt").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    metadata, shard = folder / ".metadata", folder / "__0_0.distcp"
    if damage == "hostile":
        name = str(tmp_path / "canary").encode()
        metadata.write_bytes(b"cio\nopen\n(X" + len(name).to_bytes(4, "little") + name + b"X\x01\x00\x00\x00wtR.")
    elif damage == "torn":
        metadata.write_bytes(metadata.read_bytes()[:-50])
    elif damage == "no shard":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ValueError, match="can not be read"):
        shards.read_shards(folder)
    if damage in ("hostile", "torn"):
        with pytest.raises(ValueError, match="can not be read safely"):
            runs.inspect_checkpoint(folder)
    assert not (tmp_path / "canary").exists()


# -- every id weighs the same ----------------------------------------------------------------------------------------------


def test_accumulated_micro_batches_have_the_gradient_of_one_batch(tmp_path: Path):
    batches = two_ranks.batches(4)
    accumulated = gradients(tiny_stage(tmp_path), batches, tmp_path, accumulate_grad_batches=4)
    whole = gradients(tiny_stage(tmp_path), [one_batch(batches)], tmp_path)
    for name, value in whole.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-5, atol=1e-7)


def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches(tmp_path: Path):
    batches = two_ranks.batches(2)
    short = gradients(tiny_stage(tmp_path), batches, tmp_path, accumulate_grad_batches=4, max_epochs=1)
    whole = gradients(tiny_stage(tmp_path), [one_batch(batches)], tmp_path)
    for name, value in whole.items():
        torch.testing.assert_close(short[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_loss_of_packed_documents_is_that_of_each_in_a_row_of_its_own(kind: str, tmp_path: Path):
    stage = tiny_stage(tmp_path, kind).eval()
    batch = random_rows(3)
    packed = stage.score(batch).losses
    alone = []
    for row in range(3):
        for doc in range(3):
            mine = batch.doc_ids[row] == doc
            ids, mask = batch.ids[row, mine][None], batch.loss_mask[row, mine][None]
            alone.append(
                stage.score(RowBatch(ids, mask, torch.zeros_like(ids), torch.zeros(1, dtype=torch.long))).losses
            )
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_labels_are_shifted_once(tmp_path: Path):
    """Against transformers' own loss, which shifts by itself, and against what two shifts would give."""
    stage = tiny_stage(tmp_path).eval()
    ids = random_rows(1).ids
    everything = torch.ones_like(ids, dtype=torch.bool)
    everything[:, 0] = False
    out = stage.score(RowBatch(ids, everything, torch.zeros_like(ids), torch.zeros(1, dtype=torch.long)))
    torch.testing.assert_close(out.losses.mean(), stage.lm(input_ids=ids, labels=ids).loss)
    assert torch.equal(out.targets, ids[0, 1:])
    logits = stage.lm(input_ids=ids).logits
    twice = F.cross_entropy(logits[0, :-2], ids[0, 2:])
    assert not torch.isclose(out.losses.mean(), twice, rtol=1e-3)


def test_an_id_that_is_not_to_be_predicted_is_no_target(tmp_path: Path):
    stage = tiny_stage(tmp_path).eval()
    batch = random_rows(2)
    last = (batch.doc_ids >= 0) & (batch.doc_ids != batch.doc_ids.roll(-1, 1))  # nothing comes after these
    batch.loss_mask[last] = False
    before = stage.score(batch)
    batch.ids[last] = (batch.ids[last] + 1) % len(VOCAB)
    torch.testing.assert_close(stage.score(batch).losses, before.losses, rtol=0, atol=0)
    batch.loss_mask[last] = True
    assert len(stage.score(batch).losses) == len(before.losses) + int(last.sum())


def test_computing_layers_twice_changes_no_gradient(tmp_path: Path):
    batches = [random_rows(2)]
    once = gradients(tiny_stage(tmp_path), batches, tmp_path)
    twice = gradients(tiny_stage(tmp_path, activation_checkpointing=True), batches, tmp_path)
    for name, value in once.items():
        torch.testing.assert_close(twice[name], value, rtol=0, atol=0)


# -- it learns, and goes on as it was trained ------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_batch_that_was_learnt_by_heart_is_regenerated_exactly(tied: bool, tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(len(VOCAB), generator=generator)[:48].view(2, 24)  # no id twice: each tells what follows it
    docs = (torch.arange(24) >= 10).int().expand(2, 24)
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[:, [0, 10]] = False
    batch = RowBatch(ids, mask, docs, torch.zeros(2, dtype=torch.long))
    stage = tiny_stage(tmp_path, tied=tied, optimizer=FAST)
    fit(stage, [batch] * 80, tmp_path, steps=80, limit_val_batches=0)
    stage.eval()
    for row in range(2):
        for begin, end in ((0, 10), (10, 24)):
            made = stage.lm.generate(ids[row, None, begin : begin + 1], max_new_tokens=end - begin - 1, do_sample=False,
                                     eos_token_id=None, pad_token_id=0)  # fmt: skip
            assert torch.equal(made[0], ids[row, begin:end])


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_one_id_at_a_time_gives_the_logits_of_all_at_once(kind: str, tmp_path: Path):
    lm = tiny_stage(tmp_path, kind).eval().lm
    ids = random_rows(2).ids
    whole, cache, steps = lm(input_ids=ids).logits, None, []
    for position in range(ids.shape[1]):
        out = lm(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


# -- what is logged --------------------------------------------------------------------------------------------------------


def test_losses_and_counts_by_modality_source_and_language_add_up(tmp_path: Path):
    batches = two_ranks.batches(4)
    stage = tiny_stage(tmp_path, optimizer=AdamWSettings(lr=0.0, decay="constant"))
    fit(stage, batches, tmp_path, steps=4, logger=JsonlLogger(str(tmp_path)), log_every_n_steps=4)
    seen = {name: list(values.values())[-1] for name, values in read_metrics(tmp_path).items()}
    out = [stage.score(batch) for batch in batches]
    losses, targets = (torch.cat([getattr(one, name) for one in out]).detach() for name in ("losses", "targets"))
    sources = torch.cat([batch.source_ids[one.rows] for one, batch in zip(out, batches, strict=True)])
    speech = VOCAB.is_speech(targets)
    assert seen["train/loss_speech"] == pytest.approx(float(losses[speech].mean()), rel=1e-5)
    assert seen["train/loss_text"] == pytest.approx(float(losses[~speech].mean()), rel=1e-5)
    assert seen["train/loss_by_source/mixed"] == pytest.approx(float(losses[sources == 1].mean()), rel=1e-5)
    assert seen["train/loss_by_source/text_speech"] == pytest.approx(
        float(losses[(sources == 0) & speech].mean()), rel=1e-5
    )
    assert seen["train/loss_by_language/de"] == seen["train/loss_by_source/mixed"]
    assert seen["val/heldout/loss"] == pytest.approx(float(losses.mean()), rel=1e-5)  # the same rows
    assert seen["val/heldout/loss_speech"] == pytest.approx(seen["train/loss_speech"], rel=1e-5)
    tokens = sum(batch.num_tokens for batch in batches)
    assert seen["data/tokens_seen"] == seen["data/tokens_seen_text"] + seen["data/tokens_seen_speech"] == tokens
    assert seen["data/tokens_seen/text"] + seen["data/tokens_seen/mixed"] == tokens
    assert seen["data/tokens_seen_by_language/en"] == seen["data/tokens_seen/text"]


def test_a_resumed_run_counts_on(tmp_path: Path):
    first = fit(tiny_stage(tmp_path), two_ranks.batches(2), tmp_path, steps=2, limit_val_batches=0)
    checkpoint: dict[str, Any] = {}
    first.lightning_module.on_save_checkpoint(checkpoint)
    stage = tiny_stage(tmp_path)
    stage.on_load_checkpoint(checkpoint)
    second = fit(stage, two_ranks.batches(2), tmp_path, steps=2, limit_val_batches=0)
    tokens = sum(batch.num_tokens for batch in two_ranks.batches(2))
    assert float(first.callback_metrics["data/tokens_seen"]) == tokens
    assert float(second.callback_metrics["data/tokens_seen"]) == 2 * tokens


def test_speech_ids_begin_as_the_codebook_lies_and_a_run_that_goes_on_does_not_ask_for_it(tmp_path: Path):
    codebook = tmp_path / "codebook.safetensors"
    vectors = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).repeat_interleave(4, 0)
    save_file({"codebook": vectors}, codebook)
    slow = AdamWSettings(lr=1e-9, decay="constant", weight_decay=0.0)
    stage = tiny_stage(tmp_path, tied=False, codebook=str(codebook), ema_decay=0.5, optimizer=slow)
    before = stage.lm.get_input_embeddings().weight.detach().clone()
    trainer = fit(stage, two_ranks.batches(1), tmp_path, limit_val_batches=0)
    for part in (stage.lm.get_input_embeddings(), stage.lm.get_output_embeddings()):
        speech = part.weight.detach()[VOCAB.speech_offset :][: VOCAB.num_speech]
        group = torch.arange(VOCAB.num_speech) // 4
        near = torch.cdist(speech, speech)
        assert near[group[:, None] == group].max() < 1e-3 < near[group[:, None] != group].min()
    kept = torch.arange(len(before)) < VOCAB.speech_offset
    torch.testing.assert_close(stage.lm.get_input_embeddings().weight[kept], before[kept], rtol=0, atol=1e-6)
    assert stage.ema is not None
    for mean, weight in zip(stage.ema.buffers(), stage.model.parameters(), strict=True):
        torch.testing.assert_close(mean, weight, rtol=0, atol=1e-6)

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    codebook.unlink()
    again = tiny_stage(tmp_path, tied=False, codebook=str(codebook), ema_decay=0.5, optimizer=slow)
    again.load_state_dict(stage.state_dict())
    resumed = L.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    resumed.fit(again, datamodule=Rows(two_ranks.batches(1)), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    with pytest.raises(FileNotFoundError):
        fit(tiny_stage(tmp_path, codebook=str(codebook)), two_ranks.batches(1), tmp_path)


# -- bad input -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, len(VOCAB), 127, 10**6])  # the embedding has 128 rows
def test_an_id_outside_the_vocabulary_is_named_with_its_place(bad: int, tmp_path: Path):
    batch = random_rows(2)
    batch.ids[1, 5] = bad
    with pytest.raises(
        ValueError, match=rf"id {bad} at position 5 of row 1 of a batch, from mixed, is outside .* 96 ids"
    ):
        fit(tiny_stage(tmp_path), [batch], tmp_path)


def test_a_step_without_anything_to_predict_changes_nothing(tmp_path: Path):
    stage = tiny_stage(tmp_path, optimizer=FAST, ema_decay=0.5)
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    trainer = fit(stage, [random_rows(2, losses=False)], tmp_path)
    assert stage.skipped == 1 and trainer.callback_metrics["train/loss"] == 0.0
    for name, value in stage.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_loss_that_is_no_number_is_left_out_and_the_next_step_is_not(tmp_path: Path):
    healthy, poisoned = two_ranks.batches(2), two_ranks.batches(2, poisoned=True)[1]
    stage = tiny_stage(tmp_path, optimizer=FAST)
    fit(stage, [poisoned, *healthy], tmp_path, steps=3, callbacks=[two_ranks.Poison()], limit_val_batches=0)
    other = tiny_stage(tmp_path, optimizer=FAST)
    fit(other, healthy, tmp_path, steps=2, limit_val_batches=0)
    assert (stage.skipped, other.skipped) == (1, 0)
    for name, value in stage.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=0)


def test_losses_that_stay_no_numbers_end_the_run(tmp_path: Path):
    stage = tiny_stage(tmp_path, z_loss=0.0, max_skipped=3)
    stage.model.z_loss = float("nan")
    with pytest.raises(RuntimeError, match=r"3 updates in a row were left out, .* norm is nan"):
        fit(stage, two_ranks.batches(2) * 4, tmp_path, steps=8)
    assert stage.skipped == 3


def test_a_codebook_of_other_codes_is_refused(tmp_path: Path):
    save_file({"codebook": torch.zeros(31, 4)}, tmp_path / "codebook.safetensors")
    with pytest.raises(ValueError, match="has 31 codes, the vocabulary of the rows 32"):
        fit(tiny_stage(tmp_path, codebook=str(tmp_path / "codebook.safetensors")), two_ranks.batches(1), tmp_path)


def test_a_strategy_that_can_not_clip_by_norm_is_refused(tmp_path: Path):
    stage = tiny_stage(tmp_path)
    stage._trainer = type("Trainer", (), {"strategy": FSDPStrategy(), "precision": "32-true"})()
    with pytest.raises(ValueError, match=r"speechlm\.fsdp2\.FSDP2"):
        stage.configure_model()


def test_a_precision_that_would_round_the_state_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"set trainer\.precision to bf16-mixed, got bf16-true"):
        fit(tiny_stage(tmp_path), [random_rows(1)], tmp_path, precision="bf16-true")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"loss_chunk": 0}, "chunk of at least 1"),
        ({"attention": "eager"}, "attention must be"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"lora": Lora(targets=["q_prj"])}, r"q_prj.*q_proj"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        tiny_stage(tmp_path, **wrong)


# -- averages and adapters -------------------------------------------------------------------------------------------------


def test_the_average_is_that_of_the_weights_of_all_steps(tmp_path: Path):
    stage = tiny_stage(tmp_path, optimizer=FAST, ema_decay=0.75)
    expected = stage.lm.lm_head.weight.detach().clone()

    class Watch(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            expected.mul_(0.75).add_(0.25 * stage.lm.lm_head.weight.detach())

    fit(stage, two_ranks.batches(2), tmp_path, steps=2, callbacks=[Watch()], limit_val_batches=0)
    assert stage.ema is not None and not torch.allclose(stage.lm.lm_head.weight, expected)
    stage.ema.copy_to(stage.model)
    torch.testing.assert_close(stage.lm.lm_head.weight.detach(), expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_adapters_start_as_nothing_learn_alone_and_merge_into_a_plain_model(kind: str, tmp_path: Path):
    batch = random_rows(2)
    plain, stage = (
        tiny_stage(tmp_path / str(i), kind, lora=lora, optimizer=FAST)
        for i, lora in enumerate((None, Lora(rank=2, embeddings=False)))
    )
    torch.testing.assert_close(stage.score(batch).losses, plain.score(batch).losses, rtol=0, atol=0)
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    fit(stage, [batch] * 3, tmp_path, steps=3, limit_val_batches=0)
    moved = {name for name, value in stage.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("lora_" in name for name in moved)
    trained = stage.score(batch).losses
    merge_lora(stage.lm)
    assert not any(isinstance(part, LoraLinear) for part in stage.lm.modules())
    assert {name.removeprefix("model.lm.") for name in stage.state_dict()} == set(plain.lm.state_dict())
    torch.testing.assert_close(stage.score(batch).losses, trained, rtol=1e-4, atol=1e-5)


def test_embeddings_are_trained_beside_adapters_where_asked_for(tmp_path: Path):
    stage = tiny_stage(tmp_path, lora=Lora(rank=2, targets=["q_proj"]), optimizer=FAST)
    names = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    layers = [f"model.lm.model.layers.{i}.self_attn.q_proj.lora_{ab}" for i in (0, 1) for ab in "ab"]
    assert names == {"model.lm.model.embed_tokens.weight", *layers}


# -- cost ------------------------------------------------------------------------------------------------------------------


def test_useful_operations_are_those_that_torch_counts_without_padding(tmp_path: Path):
    stage = tiny_stage(tmp_path, tied=False)
    ids = random_rows(1).ids
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    batch = RowBatch(ids, mask, torch.zeros_like(ids), torch.zeros(1, dtype=torch.long))
    with FlopCounterMode(display=False) as counter:
        stage.lm(input_ids=ids).logits.sum().backward()
    length = ids.shape[1]
    attention = stage.cost.per_pair * length * (length + 1) / 2
    linear = float(stage.useful_flops(batch)) - attention
    counted = counter.get_flop_counts()["Global"]
    products = sum(count for op, count in counted.items() if "mm" in str(op) and "bmm" not in str(op))
    head_of_first = stage.cost.per_target  # torch computes logits of the last position too
    assert linear + head_of_first == pytest.approx(products, rel=0.01)
    padded = random_rows(2)
    assert float(stage.useful_flops(padded)) < float(stage.useful_flops(one_batch([batch, batch])))
