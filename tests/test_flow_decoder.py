"""The flow decoder stage: what it promises, exact resuming, the average, the guard, refusals."""

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import IterableDataset

from datamodules.resume import position
from speechlm import export
from speechlm.batch import ResynthesisBatch
from speechlm.fit import main as run_fit
from speechlm.load import load_stage, load_vocoder
from speechlm.nn.flow_released import ReleasedFlow
from speechlm.nn.flow_stream import CachedStream, WindowStream
from speechlm.nn.hift import HiFT
from speechlm.nn.hift_released import read_hift
from speechlm.nn.token_to_mel import FlowTraining, Prompt, Sampling
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.stages.gradient_guard import GradientGuard, GuardSettings
from speechlm.stages.optim import AdamWSettings
from tests.tiny_flow import CLOCK, FORMS, M, V, tokens_of

ROOT = Path(__file__).parents[1]
FEW = Sampling(steps=2)
SCHEDULE = AdamWSettings(lr=1e-3, weight_decay=0.0, decay="linear", warmup_steps=2, total_steps=6)


def speech(index: int, tokens: tuple[int, ...] = (5, 3)) -> ResynthesisBatch:
    """Tones that say their tokens, the last token filled in part; the same for the same index."""
    draw = np.random.default_rng(index)
    lens = torch.tensor(tokens)
    said = torch.from_numpy(draw.integers(0, V, (len(tokens), max(tokens))))
    audio_lens = lens * 1764 - 700
    hz = 200.0 + 50.0 * said.repeat_interleave(1764, 1).numpy()
    audio = torch.from_numpy(np.sin(2 * np.pi * np.cumsum(hz, 1) / 22_050).astype(np.float32)) * 0.1
    real = torch.arange(audio.shape[1]) < audio_lens[:, None]
    return ResynthesisBatch(
        speech_tokens=said.masked_fill(torch.arange(max(tokens)) >= lens[:, None], -1),
        speech_token_lens=lens,
        audio=(audio * real)[:, : int(audio_lens.max())],
        audio_lens=audio_lens,
        sample_rate_hz=22_050,
        speakers=["ann", ""][: len(tokens)],
        texts=["" for _ in tokens],
        cut_ids=[f"{index}-{row}" for row in range(len(tokens))],
    )


class Speech(L.LightningDataModule):
    """An endless stream of `speech` that a resumed run enters where it left off."""

    def __init__(self, change: Any = None) -> None:
        super().__init__()
        self.change = change

    def train_dataloader(self) -> "SpeechStream":
        return SpeechStream(position(self.trainer)[1], self.change)

    def val_dataloader(self) -> "SpeechStream":
        return SpeechStream(998, None)


class SpeechStream(IterableDataset):
    def __init__(self, start: int, change: Any) -> None:
        self.start, self.change = start, change

    def __iter__(self) -> Iterator[ResynthesisBatch]:
        for index in range(self.start, 1000):
            batch = speech(index)
            yield self.change(index, batch) if self.change else batch


def stage(form: str = "causal", dropout: float = 0.1, **settings: Any) -> FlowDecoder:
    return FlowDecoder(
        CLOCK, lambda clock: FORMS[form](dropout=dropout), **{"optimizer": SCHEDULE, "sampling": FEW, **settings}
    )


def fit(
    decoder: FlowDecoder, folder: Path, steps: int, ckpt_path: str | None = None, data: Any = None, **settings: Any
) -> FlowDecoder:
    L.seed_everything(0 if ckpt_path is None else 1)  # nothing may depend on it
    trainer = L.Trainer(**{
        "max_steps": steps, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "use_distributed_sampler": False, "default_root_dir": folder, "limit_val_batches": 0,
        **settings,
    })  # fmt: skip
    trainer.fit(decoder, datamodule=data or Speech(), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return decoder


def same(one: FlowDecoder, other: FlowDecoder) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(a, b) for a, b in zip(*map(dict.values, states), strict=True)
    )


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}],
    ids=["bf16", "accumulated"],
)
@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, form: str, settings: dict[str, Any]):
    guard = {"guard": GuardSettings(spike=1.5, warmup=2)}
    unbroken = fit(stage(form, 0.2, **guard), tmp_path / "x", 6, **settings)
    fit(stage(form, 0.2, **guard), tmp_path / "y", 3, **settings)
    resumed = fit(stage(form, 0.2, **guard), tmp_path / "y", 6, str(tmp_path / "y" / "3.ckpt"), **settings)
    assert same(unbroken, resumed)
    states = [torch.load(tmp_path / name / "6.ckpt", weights_only=True) for name in "xy"]
    assert states[0]["guard"] == states[1]["guard"]
    assert states[0]["batches"] == states[1]["batches"] == 6 * settings.get("accumulate_grad_batches", 1)
    moments = [state["optimizer_states"][0]["state"] for state in states]
    assert all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])


def test_the_average_follows_the_weights_and_is_what_decodes(tmp_path: Path):
    history: list[Tensor] = []
    decoder = stage(ema_decay=0.5)
    weight = decoder.network.encoder_proj.weight
    step = decoder.optimizer_step
    decoder.optimizer_step = lambda *a, **k: (step(*a, **k), history.append(weight.detach().clone()))[0]
    start = weight.detach().clone()
    fit(decoder, tmp_path, 3)
    average = start
    for updates, now in enumerate(history):
        keep = min(0.5, (1 + updates) / (10 + updates))
        average = keep * average + (1 - keep) * now
    assert torch.allclose(decoder.used.encoder_proj.weight, average, atol=1e-6)
    assert not torch.equal(decoder.used.encoder_proj.weight, weight)
    assert decoder.used is decoder.average
    assert stage(ema_decay=None).used is not None


def test_a_run_from_weights_starts_from_their_average(tmp_path: Path):
    first = fit(stage(), tmp_path, 2)
    second = stage()
    second.load_state_dict(first.state_dict())
    assert not torch.equal(second.network.encoder_proj.weight, first.used.encoder_proj.weight)
    second.optimizer_settings = replace(SCHEDULE, lr=0.0, min_lr=0.0, decay="constant")
    fit(second, tmp_path, 1)
    assert torch.allclose(second.network.encoder_proj.weight, first.used.encoder_proj.weight, atol=1e-7)


def test_a_new_run_starts_from_the_tokenizers_codebook_and_a_resumed_one_does_not(tmp_path: Path):
    vectors = torch.randn(V, 5, generator=torch.Generator().manual_seed(0))
    save_file({"codebook": vectors}, tmp_path / "codebook.safetensors")
    frozen = replace(SCHEDULE, lr=0.0, decay="constant")
    settings = {"codebook": str(tmp_path / "codebook.safetensors"), "optimizer": frozen}
    started = fit(stage(**settings), tmp_path, 1)
    centred = vectors - vectors.mean(0)
    for network in (started.network, started.used):
        table = network.input_embedding.weight
        assert torch.allclose(table[:, :5] / table[:, :5].norm(), centred / centred.norm(), atol=1e-5)
        assert not table[:, 5:].any()
    (tmp_path / "codebook.safetensors").unlink()
    assert same(fit(stage(**settings), tmp_path, 2, str(tmp_path / "1.ckpt")), started)


def test_the_prior_teaches_what_tokens_mean_while_the_velocity_does_not_listen():
    decoder, batch = stage(dropout=0.0), speech(0)
    torch.nn.init.zeros_(decoder.network.estimator.outward.weight)  # no gradient from the velocity reaches a token
    mel, mel_lens = decoder.mel(batch.audio, batch.audio_lens)
    tokens, lens = batch.speech_tokens, batch.speech_token_lens

    def loss(prior: float) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        return decoder.network.loss(tokens, lens, mel, mel_lens, draw, training=FlowTraining(prior=prior))

    table = decoder.network.input_embedding.weight
    assert not torch.autograd.grad(loss(0.0), table)[0].any()
    assert torch.autograd.grad(loss(1.0), table)[0].any()
    without, half, whole = (float(loss(prior).detach()) for prior in (0.0, 0.5, 1.0))
    assert whole - without == pytest.approx(2.0 * (half - without), rel=1e-4)
    with pytest.raises(ValueError, match="weight of the prior is at least 0"):
        FlowTraining(prior=-1.0)


def test_validation_says_loss_and_distance_the_same_each_time(tmp_path: Path):
    decoder = stage()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=2,
        default_root_dir=tmp_path,
    )
    once, twice = (trainer.validate(decoder, Speech(), verbose=False)[0] for _ in range(2))
    assert once == twice
    assert once.keys() == {"val/0/loss", "val/0/mel_l1"}
    assert all(0.1 < value < 100 for value in once.values())


def test_an_update_without_a_finite_gradient_is_left_out(tmp_path: Path):
    def broken(index: int, batch: ResynthesisBatch) -> ResynthesisBatch:
        return replace(batch, audio=batch.audio * float("nan")) if index == 1 else batch

    decoder = fit(stage(), tmp_path, 3, data=Speech(broken))
    assert decoder.guard.skipped == 1 and decoder.guard.seen == 2
    assert all(p.isfinite().all() for p in decoder.parameters())


def test_a_spike_is_left_out_and_endless_ones_end_the_run():
    guard = GradientGuard(GuardSettings(spike=3.0, warmup=2, max_skipped=3))
    assert [guard.passes(torch.tensor(norm), 0) for norm in (50.0, 2.0, 2.0, 2.0)] == [True] * 4
    usual = (50 * 2 * 2 * 2) ** 0.25
    assert guard.passes(torch.tensor(2.9 * usual), 4)
    assert not guard.passes(torch.tensor(100.0 * usual), 5)
    assert (guard.skipped, guard.in_a_row) == (1, 1)
    again = GradientGuard(guard.settings)
    again.restore(guard.state())
    assert again.state() == guard.state()
    assert not guard.passes(torch.tensor(float("nan")), 6)
    with pytest.raises(
        RuntimeError, match=r"3 updates in a row were left out, the last because .* inf; lower the learning rate"
    ):
        guard.passes(torch.tensor(float("inf")), 7)
    with pytest.raises(ValueError, match="spike above 1"):
        GuardSettings(spike=0.5)


def test_speakers_are_looked_up_by_name(tmp_path: Path):
    path = tmp_path / "vectors.safetensors"
    save_file({"ann": torch.arange(6.0)}, path)
    decoder = stage(speaker_vectors=str(path))
    vectors = decoder.speakers_of(speech(0))
    assert vectors is not None and vectors.tolist() == [list(map(float, range(6))), [0.0] * 6]
    fit(decoder, tmp_path, 1)
    with pytest.raises(ValueError, match=r"no vector for speakers \['bob'\]"):
        decoder.speakers_of(replace(speech(0), speakers=["bob", ""]))
    save_file({"ann": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"have 6 numbers, got \(3,\) for 'ann'"):
        stage(speaker_vectors=str(path))


# -- two ranks ---------------------------------------------------------------------------------------------------------


def one_rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_RANK=str(rank), NODE_RANK="0"
    )
    decoder = fit(stage(), folder / str(rank), 3, strategy="ddp", devices=2)
    torch.save(decoder.state_dict(), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_ranks_stay_the_same_and_draw_different_noise(tmp_path: Path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.spawn(one_rank, (port, tmp_path), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    alone = fit(stage(), tmp_path / "alone", 3)
    assert not torch.equal(alone.state_dict()["network.encoder_proj.weight"], one["network.encoder_proj.weight"])


# -- decoding ----------------------------------------------------------------------------------------------------------


def vocoder() -> HiFT:
    torch.manual_seed(0)
    return HiFT(num_mels=M, channels=16, f0_channels=8).eval()


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_sounds_as_each_recording_alone(form: str):
    decoder = stage(form, vocoder=vocoder())
    tokens, lens = tokens_of(12, 1, 7)
    mel, mel_lens = decoder.decode(tokens, lens)
    audio, audio_lens = decoder.speak(tokens, lens)
    assert mel_lens.tolist() == [82, 6, 48] and audio_lens.tolist() == [82 * 256, 6 * 256, 48 * 256]
    for row, length in enumerate(lens.tolist()):
        alone = decoder.decode(tokens[row : row + 1, :length], lens[row : row + 1]).mel
        assert (alone[0] - mel[row, :, : alone.shape[2]]).abs().max() < 1e-3
        spoken, _ = decoder.speak(tokens[row : row + 1, :length], lens[row : row + 1])
        assert (spoken[0] - audio[row, : spoken.shape[1]]).abs().max() < 1e-3


def test_the_same_seed_makes_the_same_mel_even_while_training():
    decoder = stage(dropout=0.5).train()
    tokens, lens = tokens_of(8)
    assert torch.equal(decoder.decode(tokens, lens).mel, decoder.decode(tokens, lens).mel)
    assert decoder.used.training
    assert not torch.equal(decoder.decode(tokens, lens).mel, decoder.decode(tokens, lens, seed=1).mel)


def test_a_stream_is_exact_where_the_network_is_causal_and_in_windows_elsewhere():
    tokens, lens = tokens_of(23)
    decoder = stage()
    stream = decoder.stream(seed=3)
    assert isinstance(stream, CachedStream)
    made = torch.cat([stream.push(tokens[:, :15]), stream.push(tokens[:, 15:], last=True)], 2)
    assert (made - decoder.decode(tokens, lens, seed=3).mel).abs().max() < 1e-4
    assert isinstance(stage("released").stream(), WindowStream)


def test_the_streamed_sound_is_the_offline_sound_at_every_border():
    """Equal to the sample, and no jump at a border that is not in the whole."""
    decoder = stage(vocoder=vocoder())
    tokens, lens = tokens_of(45)
    whole, _ = decoder.speak(tokens, lens)
    stream = decoder.speak_stream()
    pieces = [stream.push(part, last=i == 4) for i, part in enumerate(tokens.split(10, dim=1))]
    streamed = torch.cat(pieces, 1)
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() < 1e-4
    borders = torch.tensor([piece.shape[1] for piece in pieces]).cumsum(0)[:-1]
    bend = streamed[0].diff().diff().abs()  # a click is a bend that no neighbour has
    for border in borders.tolist():
        assert bend[border - 2 : border + 1].max() <= bend[border - 2000 : border + 2000].quantile(0.999) * 3


def test_a_prompt_is_made_of_a_recording_at_the_decoders_rate():
    decoder, batch = stage(), speech(0, (9, 4))
    prompt = decoder.prompt(batch.speech_tokens, batch.speech_token_lens, batch.audio, batch.audio_lens, 22_050)
    tokens, lens = tokens_of(5, 8)
    mel, mel_lens = decoder.decode(tokens, lens, prompt=prompt)
    told = (batch.speech_token_lens + lens) * 1764 // 256 - batch.speech_token_lens * 1764 // 256
    assert mel_lens.tolist() == told.tolist()
    assert (mel - decoder.decode(tokens, lens).mel[:, :, : mel.shape[2]]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="the prompt has 16000 Hz, the decoder 22050 Hz"):
        decoder.prompt(batch.speech_tokens, batch.speech_token_lens, batch.audio, batch.audio_lens, 16_000)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_heard_through_a_vocoders_run_and_both_go_out_in_the_released_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    common = ["--runs_dir", str(tmp_path), "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    run_fit(["--config", "configs/vocoder/tiny/paper.yaml", *common])
    voice = {"class_path": "speechlm.load.load_vocoder", "init_args": {"run": str(tmp_path / "tiny_vocoder_paper")}}
    no_voice, vocoder_flag = (["--model.init_args.vocoder", json.dumps(value)] for value in (None, voice))
    run_fit(["--config", "configs/flow_decoder/tiny/paper.yaml", *common, *no_voice, *vocoder_flag])
    for name in ("tiny_vocoder_paper", "tiny_flow_decoder_paper"):
        export.main(["--run", str(tmp_path / name), "--out", str(tmp_path / "out"), "--format", "glm4voice"])
    decoder = load_stage(tmp_path / "tiny_flow_decoder_paper")
    assert isinstance(decoder, FlowDecoder)
    again = ReleasedFlow(CLOCK, str(tmp_path / "out" / "flow.pt"), head_width=8)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), decoder.used.parameters(), strict=True))
    hift = read_hift(tmp_path / "out" / "hift.pt")
    assert all(torch.equal(a, b) for a, b in zip(hift.parameters(), decoder.vocoder().parameters(), strict=True))
    audio, lens = decoder.speak(*tokens_of(4, 2))
    assert audio.isfinite().all() and lens.tolist() == [27 * 256, 13 * 256]
    with pytest.raises(ValueError, match="is no run of a vocoder"):
        load_vocoder(str(tmp_path / "tiny_flow_decoder_paper"))


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_tokens_that_are_none_are_refused():
    decoder = stage()
    tokens, lens = tokens_of(5)
    with pytest.raises(ValueError, match=r"lengths from 1 to 5, got \[0\]"):
        decoder.decode(tokens, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"lengths from 1 to 0, got \[0\]"):
        decoder.decode(tokens[:, :0], torch.tensor([0]))
    with pytest.raises(ValueError, match=r"lengths from 1 to 5, got \[6\]"):
        decoder.decode(tokens, torch.tensor([6]))
    with pytest.raises(ValueError, match=r"integers \(B, T\)"):
        decoder.decode(tokens.float(), lens)
    for wrong in (V, -1):
        bad = tokens.clone()
        bad[0, 3] = wrong
        with pytest.raises(ValueError, match=rf"lie in \[0, 32\), got {wrong} at position 3 of row 0"):
            decoder.decode(bad, lens)
        assert decoder.decode(bad, torch.tensor([3])).mel.isfinite().all()  # behind the end nobody looks
    assert decoder.decode(tokens, torch.tensor([1])).mel.shape == (1, M, 6)


def test_prompts_and_speakers_that_do_not_fit_are_refused():
    decoder = stage(max_prompt_sec=0.5)
    tokens, lens = tokens_of(5)
    mel = torch.zeros(1, M, 41)
    good = Prompt(tokens[:, :6], torch.tensor([5]), mel, torch.tensor([34]))
    assert decoder.decode(tokens, lens, prompt=good).mel_lens.tolist() == [34]
    cases = [
        (good._replace(mel_lens=torch.tensor([35])), r"tokens fill \[27\] to \[34\] mel frames at 22050 Hz.* got \[35\]"),
        (good._replace(mel_lens=torch.tensor([27])), "must be of the same recording"),
        (good._replace(mel=mel / 0), "NaN or infinite"),
        (good._replace(mel=mel[:, :3]), r"log-mels \(1, 8, F\), got 1 and \(1, 3, 41\)"),
        (Prompt(*tokens_of(7), torch.zeros(1, M, 48), torch.tensor([48])), r"0\.56 s long, the limit is 0\.5 s"),
        (good._replace(tokens=tokens + V), "the prompt's tokens lie in"),
    ]  # fmt: skip
    for prompt, message in cases:
        with pytest.raises(ValueError, match=message):
            decoder.decode(tokens, lens, prompt=prompt)
        with pytest.raises(ValueError, match=message):
            decoder.stream(prompt=prompt)
    for speakers in (torch.zeros(1, 5), torch.full((1, 6), float("nan")), torch.zeros(2, 6)):
        with pytest.raises(ValueError, match=r"finite vectors \(1, 6\)"):
            decoder.decode(tokens, lens, speakers=speakers)


def test_batches_of_other_rates_or_tokenizers_are_refused():
    decoder, batch = stage(), speech(0)
    cases = [
        (replace(batch, sample_rate_hz=16_000), "the batch has 16000 Hz, the decoder 22050 Hz"),
        (replace(batch, speech_tokens=batch.speech_tokens[:, :0]), "has no speech tokens"),
        (replace(batch, speech_tokens=batch.speech_tokens + V), r"lie in \[0, 32\)"),
        (replace(batch, audio_lens=batch.audio_lens - 3000), r"have \[3, 1\] tokens at 22050 Hz.* got \[5, 3\]"),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            decoder.on_before_batch_transfer(wrong, 0)
    assert decoder.on_before_batch_transfer(batch, 0) is batch


def test_parts_that_do_not_fit_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"makes mel; set `model\.init_args\.vocoder`"):
        stage().resynthesize(speech(0))
    with pytest.raises(ValueError, match="8 mel bins, the vocoder 22050 Hz, hop 256 and 80"):
        stage(vocoder=HiFT(channels=16, f0_channels=8))
    with pytest.raises(ValueError, match="ema_decay must be between 0 and 1"):
        stage(ema_decay=1.0)
    trainer = SimpleNamespace(precision="16-mixed")
    decoder = stage()
    decoder.__dict__["_trainer"] = trainer
    with pytest.raises(ValueError, match=r"bf16-mixed or 32-true, got trainer\.precision '16-mixed'"):
        decoder.on_fit_start()
