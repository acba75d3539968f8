"""The source-filter vocoder: pitch, streams, batches, and that it learns a voice."""

import numpy as np
import pytest
import torch
from torch import Tensor

from speechlm.nn.pulse_source import PulseSource
from speechlm.nn.source_filter import SourceFilter
from speechlm.nn.spectral_loss import SpectralLoss

RATE, HOP, M = 16_000, 64, 20
TOLERANCE = (
    1e-3  # of a waveform near 0.1: the pitch of a piece differs in its last bit, and every overtone multiplies that
)


@pytest.fixture(scope="module")
def tiny() -> SourceFilter:
    """Untrained; hears a pitch in about half of all frames."""
    torch.manual_seed(0)
    network = SourceFilter(num_mels=M, width=16, layers=2, pitch_width=8, hop_samples=HOP, sample_rate_hz=RATE).eval()
    torch.nn.init.normal_(network.outward.weight, std=0.1)
    torch.nn.init.normal_(network.f0_predictor.out.weight, std=0.3)
    with torch.no_grad():
        _, voiced = network.f0_predictor(mel_of(90, batch=2))
        network.f0_predictor.out.bias[0] -= voiced.logit().median() + 0.01
    return network


def mel_of(frames: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, M, frames, generator=torch.Generator().manual_seed(seed)) - 4.0


def streamed(network: SourceFilter, mel: Tensor, sizes: list[int]) -> tuple[Tensor, list[int]]:
    """The stream's waveform, and where its pieces end."""
    stream, parts = network.stream(len(mel), 3), mel.split(sizes, dim=2)
    pieces = [stream.push(part, last=i == len(parts) - 1) for i, part in enumerate(parts)]
    return torch.cat(pieces, 1), np.cumsum([piece.shape[1] for piece in pieces]).tolist()[:-1]


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[90], [1] * 90, [40, 50], [3, 40, 0, 47], [14] * 6 + [6]])
def test_a_stream_says_what_the_whole_says_at_every_border(tiny: SourceFilter, sizes: list[int]):
    mel = mel_of(90, batch=2)
    spoken = tiny(mel, seeds=torch.full((2,), 3))
    assert 0.2 < float((tiny.pitch(mel) > 0).float().mean()) < 0.8
    audio, borders = streamed(tiny, mel, sizes)
    assert audio.shape == spoken.audio.shape == (2, 90 * HOP)
    assert (audio - spoken.audio).abs().max() < TOLERANCE
    for border in borders:
        around = slice(max(0, border - HOP), border + HOP)
        assert (audio - spoken.audio)[:, around].abs().sum() < TOLERANCE * 2 * HOP


@torch.no_grad()
def test_a_stream_is_its_lookahead_behind_and_keeps_no_more(tiny: SourceFilter):
    stream, given, got = tiny.stream(), 0, 0
    for _ in range(60):
        got += stream.push(mel_of(7)).shape[1]
        given += 7 * HOP
    assert given - got == tiny.lookahead_frames * HOP
    assert stream.speech.frames is not None
    assert stream.speech.frames.shape[2] <= tiny.past_frames + tiny.reach_frames + 7


@torch.no_grad()
def test_a_recording_sounds_the_same_in_any_company(tiny: SourceFilter):
    mel, lens = mel_of(60, batch=3), torch.tensor([60, 31, 1])
    together = tiny(mel, lens).audio
    for row, frames in enumerate(lens.tolist()):
        alone = tiny(mel[row : row + 1, :, :frames]).audio
        assert (together[row, : frames * HOP] - alone[0]).abs().max() < TOLERANCE
        assert not together[row, frames * HOP :].any()


@torch.no_grad()
def test_nothing_out_of_reach_changes_a_sample(tiny: SourceFilter):
    mel, pitch = mel_of(120), torch.full((1, 120), 150.0)
    other = mel.clone()
    other[:, :, 60] += 3.0
    changed = (tiny(mel, f0=pitch).audio - tiny(other, f0=pitch).audio).abs()[0] > 0
    frames = changed.unflatten(0, (120, HOP)).any(1).nonzero().flatten()
    assert 60 - tiny.reach_frames <= int(frames.min()) < 60 < int(frames.max()) <= 60 + tiny.past_frames


def test_pulses_have_the_pitch_they_are_given_and_every_overtone():
    source, _ = PulseSource(RATE, HOP)(torch.full((1, 250), 200.0), torch.zeros(1, dtype=torch.long))
    pulses = source[..., :HOP].flatten()[-RATE // 2 :].numpy()
    spectrum = np.abs(np.fft.rfft(pulses))  # bins of 2 Hz
    assert np.flatnonzero(spectrum > 0.25 * spectrum.max()).tolist() == [100 * k for k in range(1, 41)]
    assert 0.05 < float(np.sqrt((pulses**2).mean())) < 0.2


def test_pulses_handed_on_are_the_pulses_made_at_once():
    f0 = torch.rand(2, 500, generator=torch.Generator().manual_seed(0)) * 200 + 100
    f0[:, 100:150] = 0.0
    source, seeds = PulseSource(RATE, HOP), torch.tensor([1, 2])
    whole, _ = source(f0, seeds)
    first, state = source(f0[:, :123], seeds)
    second, _ = source(f0[:, 123:], seeds, 123, state)
    assert (torch.cat([first, second], 1) - whole).abs().max() < 1e-6
    assert not whole[:, 100:150, :HOP].any()
    assert whole[:, 100:150, HOP:].std() > 0.05


def test_it_learns_the_spectrum_and_the_pitch_of_a_voice():
    torch.manual_seed(0)
    network, distance = SourceFilter(M, 16, 1, 8, HOP, RATE), SpectralLoss((256, 512))
    time = torch.arange(40 * HOP) / RATE
    real = sum(torch.sin(2 * torch.pi * 200 * k * time) / k**2 for k in range(1, 20))[None] * 0.1
    mel, pitch = mel_of(40), torch.full((1, 40), 200.0)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    losses = []
    for _ in range(80):
        spoken = network(mel, f0=pitch)
        loss = distance(spoken.audio, real) + 0.01 * (spoken.f0 - pitch).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert (network.pitch(mel) - 200).abs().median() < 10


def test_the_distance_is_zero_for_the_same_and_grows_with_noise():
    audio = torch.sin(torch.arange(4000) / 7.0)[None]
    noise = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    near, far = (SpectralLoss()(audio + level * noise, audio) for level in (0.01, 0.1))
    assert SpectralLoss()(audio, audio) == 0 and near < far
    with pytest.raises(ValueError, match="at least one window"):
        SpectralLoss(())


def test_a_hop_without_a_middle_is_refused():
    with pytest.raises(ValueError, match="hop must be even, got 63"):
        SourceFilter(hop_samples=63)
