"""HiFT: the released vocoder's numbers, batches, noise, and streams without seams."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from speechlm.nn.hashed_noise import hashed_normal, hashed_uniform
from speechlm.nn.hift import HiFT
from speechlm.nn.hift_released import read_hift, write_hift
from speechlm.nn.short_stft import ShortSTFT
from speechlm.nn.vocoder_stream import Overlap
from speechlm.nn.weight_norm import fold

GOLDEN = Path(__file__).parent / "golden" / "glm4voice_hift"
TOLERANCE = 1e-4  # of a stream and of a batch, as docs/vocoder.md states it
EXPECTED = load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="module")
def golden() -> HiFT:
    return read_hift(GOLDEN / "hift.safetensors").eval()


@pytest.fixture(scope="module")
def tiny() -> HiFT:
    torch.manual_seed(0)
    hift = HiFT(num_mels=8, channels=16, f0_channels=8).eval()
    # So that part of the frames is voiced, and the filter's far reach can be heard.
    torch.nn.init.normal_(hift.f0_predictor.classifier.weight, std=100.0)
    for name, parameter in hift.named_parameters():
        if name.endswith("original0"):
            parameter.data *= 1.5
    return hift


def mel_of(frames: int, batch: int = 1, bins: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, bins, frames, generator=torch.Generator().manual_seed(seed))


# -- the released network ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_pitch_and_audio_are_those_of_the_released_code(golden: HiFT):
    assert golden.pitch(EXPECTED["mel"]) == pytest.approx(EXPECTED["f0"], abs=1e-4)
    audio = golden.filter(EXPECTED["mel"], EXPECTED["source"][:, 0])
    assert (audio - EXPECTED["audio"]).abs().max() < 1e-4
    assert audio.abs().max() > 0.01


def test_the_shape_is_read_from_the_weights(golden: HiFT):
    shape = json.loads((GOLDEN / "hparams.json").read_text())
    assert golden.num_mels == shape["mels"]
    assert golden.conv_pre.out_channels == shape["base"]
    assert golden.f0_predictor.classifier.in_features == shape["f0"]
    assert (list(golden.rates), list(golden.kernels)) == (shape["rates"], shape["kernels"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_survive_writing_and_reading_bit_by_bit(golden: HiFT, tmp_path: Path, suffix: str):
    write_hift(golden, tmp_path / f"hift{suffix}")
    again = read_hift(tmp_path / f"hift{suffix}")
    assert all(torch.equal(a, b) for a, b in zip(golden.parameters(), again.parameters(), strict=True))
    write_hift(again, tmp_path / "again.safetensors")
    released, ours = load_file(GOLDEN / "hift.safetensors"), load_file(tmp_path / "again.safetensors")
    assert released.keys() == ours.keys()
    assert all(torch.equal(released[name], ours[name]) for name in ours)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path):
    torch.save({"conv_pre.bias": Path("x")}, tmp_path / "hift.pt")
    with pytest.raises(ValueError, match="read safely"):
        read_hift(tmp_path / "hift.pt")


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    weights = load_file(GOLDEN / "hift.safetensors")
    del weights["ups.1.bias"]
    weights["extra"] = torch.zeros(1)
    torch.save(weights, tmp_path / "hift.pt")
    with pytest.raises(ValueError, match=r"missing: ups\.1\.bias .*\n  not in the model: extra"):
        read_hift(tmp_path / "hift.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no HiFT"):
        read_hift(tmp_path / "other.pt")


@torch.no_grad()
def test_folded_weights_say_the_same(golden: HiFT, tmp_path: Path):
    folded = read_hift(GOLDEN / "hift.safetensors")
    fold(folded)
    assert not any("parametrizations" in name for name in folded.state_dict())
    source = EXPECTED["source"][:, 0]
    assert torch.allclose(folded.filter(EXPECTED["mel"], source), golden.filter(EXPECTED["mel"], source), atol=1e-6)


# -- batches and randomness --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_recording_sounds_the_same_in_any_company(tiny: HiFT):
    lens = torch.tensor([40, 1, 23, 39])
    mel = mel_of(40, batch=4)
    mel[1, :, 1:] = 1e3  # what lies behind a recording's end
    together = tiny(mel, lens).audio
    for i, frames in enumerate(lens.tolist()):
        alone = tiny(mel[i : i + 1, :, :frames]).audio[0]
        assert (together[i, : len(alone)] - alone).abs().max() < TOLERANCE
        assert not together[i, len(alone) :].any()


@torch.no_grad()
def test_the_seed_decides_the_noise(tiny: HiFT):
    mel = mel_of(6, batch=2).expand(2, -1, -1)
    first = tiny(mel, seeds=torch.tensor([0, 1])).audio
    assert torch.equal(first, tiny(mel, seeds=torch.tensor([0, 1])).audio)
    assert torch.equal(first[0], tiny(mel).audio[0])
    assert not torch.equal(tiny(mel[:1], seeds=torch.tensor([1])).audio, tiny(mel[:1]).audio)


def test_hashed_noise_is_normal_and_independent():
    noise = hashed_normal(torch.tensor([0, 1, 2, 3]), 9, 20_000).double()
    assert noise.mean().abs() < 0.005
    assert abs(noise.std() - 1.0) < 0.005
    assert abs((noise**4).mean() - 3.0) < 0.05
    rows = noise.flatten(0, 1)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows), dtype=torch.double)
    assert correlation.abs().max() < 0.035  # five standard deviations
    assert (noise[..., 1:] * noise[..., :-1]).mean().abs() < 0.01


def test_hashed_noise_of_a_piece_is_a_piece_of_the_noise():
    seeds = torch.tensor([5, 2**40])
    assert torch.equal(hashed_normal(seeds, 3, 100)[..., 37:60], hashed_normal(seeds, 3, 23, start=37))
    assert 0.0 < hashed_uniform(seeds, 1000).min() and hashed_uniform(seeds, 1000).max() < 1.0


def test_the_excitation_has_the_pitch_it_is_given(golden: HiFT):
    f0 = torch.full((1, 200), 220.5)
    source, _ = golden.excite(f0)
    waves, _ = golden.m_source._waves(f0, torch.zeros(1, dtype=torch.long), 0, None)
    spectrum = torch.fft.rfft(waves[0, 0, :22_050]).abs()
    assert spectrum.argmax() in (220, 221)
    assert source.shape == (1, 200 * 256)


def test_the_phase_stays_exact_over_five_minutes(golden: HiFT):
    f0 = torch.full((1, 25_840), 219.7)
    _, phase = golden.m_source._cycles(f0, None)
    exact = (25_840 * 256 * float(f0[0, 0].double()) / 22_050) % 1.0
    assert abs(phase.item() - exact) < 1e-6


# -- the transform -----------------------------------------------------------------------------------------------------


def test_the_transforms_are_torchs():
    audio, window = torch.randn(2, 400), torch.hann_window(16)
    stft = ShortSTFT(16, 4)
    spectrum = torch.stft(audio, 16, 4, window=window, return_complex=True)
    ours = stft.analyse(audio)
    assert torch.allclose(ours, torch.cat([spectrum.real, spectrum.imag], 1), atol=1e-5)
    magnitude, phase = torch.rand(2, 9, 101), torch.randn(2, 9, 101)
    assert torch.allclose(
        stft.synthesise(magnitude.log(), phase),
        torch.istft(torch.polar(magnitude, phase), 16, 4, window=window),
        atol=1e-5,
    )


# -- streams -----------------------------------------------------------------------------------------------------------


def streamed(hift: HiFT, mel: Tensor, sizes: list[int], seed: int = 0) -> tuple[Tensor, list[int]]:
    """The stream's waveform, and where its pieces begin."""
    stream = hift.stream(mel.shape[0], seed)
    pieces, start = [], 0
    for i, size in enumerate(sizes):
        pieces.append(stream.push(mel[:, :, start : start + size], last=i == len(sizes) - 1))
        start += size
    borders = torch.tensor([piece.shape[1] for piece in pieces]).cumsum(0).tolist()
    return torch.cat(pieces, dim=1), borders[:-1]


def clicks(audio: Tensor, places: list[int], width: int = 64) -> list[float]:
    """How far the jump at each place stands out of its surroundings: the second difference there, over the largest within 64
    samples on both sides."""
    bend = audio.diff(n=2).abs()
    heard = []
    for place in places:
        at = bend[place - 2 : place + 1].max()
        around = torch.cat([bend[place - width : place - 2], bend[place + 1 : place + width]]).max()
        heard.append(float(at / around))
    return heard


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[100], [1] * 100, [68, 32], [3, 40, 0, 57], [30, 70, 0], [14] * 7 + [2]])
def test_a_stream_says_what_the_whole_says_at_every_border(tiny: HiFT, sizes: list[int]):
    mel = mel_of(100, batch=2)
    whole = tiny(mel, seeds=torch.full((2,), 3)).audio
    audio, borders = streamed(tiny, mel, sizes, seed=3)
    assert audio.shape == whole.shape
    assert (audio - whole).abs().max() < TOLERANCE
    for border in borders:
        assert (audio - whole)[:, max(0, border - 256) : border + 256].abs().max() < TOLERANCE


@torch.no_grad()
def test_the_click_detector_hears_a_seam_and_the_stream_has_none(tiny: HiFT):
    mel = mel_of(120)
    whole = tiny(mel).audio
    audio, borders = streamed(tiny, mel, [40, 40, 40])
    assert max(clicks(audio[0], borders)) <= 1.5 * max(clicks(whole[0], borders)) + 0.1
    apart = torch.cat([tiny(piece).audio for piece in mel.split(40, dim=2)], dim=1)
    assert (apart - whole).abs().max() > 1e-3
    jump = whole[0].clone()
    jump[borders[0] :] += 4 * whole.diff().abs().max()
    assert clicks(jump, borders)[0] > 2.0


@torch.no_grad()
def test_work_per_chunk_and_memory_do_not_grow(tiny: HiFT):
    stream, sizes = tiny.stream(), []
    whole = tiny.filter
    tiny.filter = lambda mel, *rest: sizes.append(mel.shape[2]) or whole(mel, *rest)  # type: ignore[method-assign]
    try:
        for _ in range(30):
            stream.push(mel_of(10))
    finally:
        del tiny.filter
    assert max(sizes) <= 10 + 2 * tiny.reach_frames
    assert stream.speech.frames.shape[2] <= 10 + 2 * tiny.reach_frames
    assert stream.pitch.frames.shape[2] <= 10 + 2 * tiny.f0_predictor.reach


@pytest.mark.parametrize("rates", [(8, 8), (4, 4, 2)])
def test_nothing_out_of_reach_changes_a_sample(rates: tuple[int, ...]):
    torch.manual_seed(0)
    hift = HiFT(8, 16, 8, rates, tuple(2 * r for r in rates), source_kernels=(7, 11, 7)[: len(rates)])
    frames = 2 * hift.reach_frames + 5
    middle = frames // 2
    mel, source = mel_of(frames).requires_grad_(), torch.randn(1, frames * hift.hop_samples).requires_grad_()
    audio = hift.filter(mel, source)[:, middle * hift.hop_samples : (middle + 1) * hift.hop_samples]
    audio.square().sum().backward()
    felt = (mel.grad.abs().sum(1) + source.grad.abs().unflatten(1, (frames, -1)).sum(2))[0].nonzero().flatten()
    assert int(felt.min()) >= middle - hift.reach_frames
    assert int(felt.max()) <= middle + hift.reach_frames
    assert int(felt.max()) >= middle + hift.reach_frames - 2  # and the reach is not overstated


def test_an_overlap_gives_each_output_once():
    doubled = Overlap(lambda x: x[:, 0].repeat_interleave(2, dim=1), reach=3, hop=2)
    frames = torch.arange(20.0)[None, None]
    pieces = [doubled.push(frames[:, :, a : a + 5], last=a == 15) for a in range(0, 20, 5)]
    assert [p.shape[1] for p in pieces] == [4, 10, 10, 16]
    assert torch.equal(torch.cat(pieces, 1), frames[:, 0].repeat_interleave(2, dim=1))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_shapes_and_uses_are_refused(tiny: HiFT):
    stream = tiny.stream()
    with pytest.raises(ValueError, match=r"\(1, 8, F\), got \(1, 9, 4\)"):
        stream.push(mel_of(4, bins=9))
    stream.push(mel_of(4), last=True)
    with pytest.raises(ValueError, match="open another"):
        stream.push(mel_of(4))
    with pytest.raises(ValueError, match="one upsample kernel"):
        HiFT(upsample_rates=(8, 8), upsample_kernels=(16,))
    with pytest.raises(ValueError, match="odd"):
        HiFT(resblock_kernels=(4,))
