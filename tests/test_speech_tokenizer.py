"""The stage: what it promises, and that a step of many small batches is a step of one large one."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from speechlm.batch import AudioBatch
from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.losses import IGNORED, linear_cross_entropy
from speechlm.nn.whisper_source import Distillation
from speechlm.stages.optim import AdamWSettings
from speechlm.stages.speech_tokenizer import SpeechTokenizer
from speechlm.tokens.clock import Clock
from tests.tiny_whisper import make_tiny_whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_whisper(tmp_path_factory.mktemp("whisper")))


def batch(seed: int, size: int = 4) -> AudioBatch:
    generator = torch.Generator().manual_seed(seed)
    lens = torch.randint(2_000, 20_000, (size,), generator=generator)
    audio = [0.1 * torch.randn(int(n), generator=generator) for n in lens]
    texts = ["one two", "three", "a longer transcript", "four"][:size]
    return AudioBatch(
        torch.nn.utils.rnn.pad_sequence(audio, batch_first=True),
        lens,
        texts,
        [f"{seed}-{i}" for i in range(size)],
        [],
        16_000,
    )


def build(folder: str, **settings) -> SpeechTokenizer:
    torch.manual_seed(0)
    vq = settings.pop("vq", {"init_updates": 1, "init_frames_per_code": 2, "restart_every": 3})
    defaults = {"optimizer": AdamWSettings(lr=1e-3, decay="constant"), "source_form": "unpadded"}
    return SpeechTokenizer(Clock(), folder, lambda dim: EmaVQ(dim, 16, **vq), **{**defaults, **settings})


def trainer(folder: Path, **settings) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(**quiet, default_root_dir=folder, enable_checkpointing="callbacks" in settings, **settings)


class Stream(IterableDataset):
    """Batches of unknown number, as the data module's loader gives them."""

    def __init__(self, batches: list[AudioBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[AudioBatch]:
        return iter(self.batches)


def loader(batches: list[AudioBatch]) -> DataLoader:
    return DataLoader(Stream(batches), batch_size=None, collate_fn=lambda b: b)


def test_training_logs_every_part_of_the_loss_and_the_health_of_the_codebook(folder: str, tmp_path: Path):
    stage = build(folder, codebook_window=2, distillation=Distillation(states=1.0, logits=0.5))
    runner = trainer(tmp_path, max_steps=6, log_every_n_steps=1)
    runner.fit(stage, loader([batch(i) for i in range(6)]), loader([batch(9)]))
    parts = {"asr", "vq", "distill_states", "distill_logits"}
    seen = runner.callback_metrics
    assert {f"train/loss_{part}" for part in parts} <= seen.keys()
    total = sum(float(seen[f"train/loss_{part}"]) for part in parts)
    assert float(seen["train/loss"]) == pytest.approx(total, rel=1e-5)
    assert 0 < seen["codebook/usage"] <= 1 and 1 <= seen["codebook/perplexity"] <= 16
    assert seen["codebook/bits_per_sec"] <= 12.5 * 4
    assert {"val/0/loss", "val/0/wer"} <= seen.keys() and "val/0/cer" not in seen


def test_validation_counts_words_or_characters_by_language_and_no_recording_twice(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stage, batches = build(folder), [batch(1), batch(2), batch(3, size=1)]
    batches[0].texts, batches[0].languages = ["red car", "你好，世界", "drei", "(noise)"], ["en", "zh", "de", "en"]
    batches[2].cut_ids = ["1-0_dup0"]  # of another rank, which has no other left
    said = iter([["red cat", "你好世", "drei", "noise"], batches[1].texts, ["a repetition, quite wrong"]])
    monkeypatch.setattr(stage, "transcribe", lambda *audio: next(said))
    runner = trainer(tmp_path)
    (seen,) = runner.validate(stage, loader(batches), verbose=False)
    assert seen["val/0/cer"] == pytest.approx(1 / 4) and seen["val/0/wer"] == pytest.approx(1 / 9)  # "one two" is 12
    with torch.no_grad():
        losses = [float(stage.model.asr_loss(stage.model.score(b.audio, b.audio_lens, i), labels))
                  for b in batches[:2] for i, labels in [stage._text(b)]]  # fmt: skip
    assert seen["val/0/loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_accumulated_micro_batches_move_weights_and_codebook_as_one_batch_does(folder: str, tmp_path: Path):
    whole = batch(3)
    halves = [
        AudioBatch(
            whole.audio[i : i + 2], whole.audio_lens[i : i + 2], ["same"] * 2, whole.cut_ids[i : i + 2], [], 16_000
        )
        for i in (0, 2)
    ]
    whole.texts = ["same"] * 4  # as many text ids in both halves, so that the mean of means is the mean
    results = []
    for batches, accumulate in (([whole], 1), (halves, 2)):
        settings = AdamWSettings(lr=1e-2, eps=1.0, decay="constant")  # a large eps: no step from rounding errors alone
        stage = build(folder, vq={"init": "random", "commitment": 0.0}, optimizer=settings)
        trainer(tmp_path, max_steps=1, accumulate_grad_batches=accumulate).fit(stage, loader(batches))
        results.append(stage.state_dict())
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(folder: str, tmp_path: Path, stop: int):
    batches = [batch(i) for i in range(6)]
    unbroken = build(folder)
    trainer(tmp_path, max_steps=6).fit(unbroken, loader(batches))
    saving = L.pytorch.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=stop, save_top_k=-1)
    first = trainer(tmp_path, max_steps=6, callbacks=[saving], max_epochs=1)
    first.fit(build(folder), loader(batches[: stop + 1]))
    resumed = build(folder)
    rest = trainer(tmp_path, max_steps=6)
    rest.fit(resumed, loader(batches[stop:]), ckpt_path=str(tmp_path / f"step={stop}.ckpt"), weights_only=True)
    torch.testing.assert_close(resumed.state_dict(), unbroken.state_dict(), atol=0, rtol=0)


def test_frozen_parts_stay_and_a_misspelt_part_is_refused(folder: str, tmp_path: Path):
    frozen = AdamWSettings(lr=1e-2, lr_scale={"model.decoder": 0.0, "model.encoder.layers.0": 0.0})
    stage = build(folder, optimizer=frozen)
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    trainer(tmp_path, max_steps=2).fit(stage, loader([batch(0), batch(1)]))
    for name, value in stage.state_dict().items():
        if name.startswith(("model.decoder.", "model.encoder.layers.0.", "model.encoder.embed_positions.")):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(stage.model.encoder.layers[1].fc1.weight, before["model.encoder.layers.1.fc1.weight"])
    with pytest.raises(ValueError, match=r"lr_scale names 'model\.decodr'"):
        build(folder, optimizer=AdamWSettings(lr_scale={"model.decodr": 0.0}))


def test_the_source_is_neither_saved_nor_trained(folder: str):
    stage = build(folder, distillation=Distillation(states=1.0))
    parameters = len(list(stage.parameters()))
    stage.source()
    assert len(list(stage.parameters())) == parameters
    assert not any(p.requires_grad for p in stage.source().model.parameters())


def test_the_vocabulary_names_the_codebook(folder: str):
    assert build(folder).vocab.num_speech == 16
    assert SpeechTokenizer(Clock(), folder).vocab is None


def test_chunked_cross_entropy_is_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 150, 8, generator=generator, requires_grad=True)
    weight = torch.randn(11, 8, generator=generator, requires_grad=True)
    labels = torch.randint(11, (2, 150), generator=generator).masked_fill(
        torch.rand(2, 150, generator=generator) < 0.3, IGNORED
    )
    expected = torch.nn.functional.cross_entropy(
        (states @ weight.T).flatten(0, 1), labels.flatten(), ignore_index=IGNORED
    )
    loss = linear_cross_entropy(states, weight, labels, chunk=64)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, (states, weight), retain_graph=True) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_batch_without_a_single_label_has_a_loss_of_zero():
    states = torch.randn(1, 3, 4, requires_grad=True)
    loss = linear_cross_entropy(states, torch.randn(5, 4), torch.full((1, 3), IGNORED))
    assert float(loss) == 0.0


@pytest.mark.parametrize(("decay", "end"), [("constant", 1.0), ("linear", 0.1), ("cosine", 0.1)])
def test_the_learning_rate_warms_up_and_ends_at_its_minimum(decay: str, end: float):
    settings = AdamWSettings(lr=1.0, warmup_steps=4, decay=decay, min_lr=0.1)
    factors = [settings.factor(step, 100) for step in range(101)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[100] == pytest.approx(end)
    assert all(a >= b for a, b in itertools.pairwise(factors[4:]))


def test_a_schedule_without_an_end_is_refused():
    assert AdamWSettings(total_steps=7).steps_of(-1) == 7
    assert AdamWSettings().steps_of(9) == 9
    assert AdamWSettings(decay="constant").steps_of(-1) == 0
    with pytest.raises(ValueError, match=r"set `trainer\.max_steps` or `optimizer\.total_steps`"):
        AdamWSettings().steps_of(-1)
