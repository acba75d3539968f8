"""The lower half of a VQ-Whisper gives the tokens of the whole, and its hash follows what they depend on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.lookup_free import FSQ, SimVQ
from speechlm.nn.pieces import join, split
from speechlm.nn.quantizer import Quantizer
from speechlm.nn.whisper_encoder import Bottleneck
from speechlm.nn.whisper_tokens import WhisperTokens
from speechlm.nn.whisper_vq import WhisperVQ
from speechlm.tokens.clock import Clock
from tests.tiny_whisper import make_tiny_whisper

QUANTIZERS: dict[str, Callable[[int], Quantizer]] = {
    "ema": lambda dim: EmaVQ(dim, 32, init="random"),
    "fsq": lambda dim: FSQ(dim, [4, 3, 3]),
    "fsq of other levels": lambda dim: FSQ(dim, [3, 3, 4]),
    "simvq": lambda dim: SimVQ(dim, 32),
}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_whisper(tmp_path_factory.mktemp("whisper")))


def model(whisper: str, clock: Clock = Clock(), quantizer: str = "ema", **settings) -> WhisperVQ:  # noqa: B008
    torch.manual_seed(0)
    floor = settings.pop("floor", "clip")
    made = WhisperVQ(whisper, clock, Bottleneck(**settings), QUANTIZERS[quantizer], floor).eval()
    if quantizer == "ema":
        made.encoder.quantizer.codebook.normal_(std=3.0)
    return made


def half(whisper: str, *args, **settings) -> WhisperTokens:
    made = model(whisper, *args, **settings)
    return WhisperTokens(made.log_mel, made.encoder, made.clock)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("rate_hz", [50.0, 12.5])
def test_the_lower_half_gives_the_tokens_of_the_whole(whisper: str, rate_hz: float, quantizer: str):
    clock = Clock(token_rate_hz=rate_hz)
    audio = 0.1 * torch.randn(2, 16_000 * 33, generator=torch.Generator().manual_seed(0))
    lens = torch.tensor([16_000 * 33, 12_345])
    expected, expected_lens = model(whisper, clock, quantizer).tokenize(audio, lens)
    tokens, token_lens = half(whisper, clock, quantizer).tokenize(audio, lens)
    assert torch.equal(tokens, expected) and torch.equal(token_lens, expected_lens)
    assert token_lens.tolist() == [clock.num_tokens(n) for n in lens.tolist()]
    assert len(tokens.unique()) > 2


@pytest.mark.parametrize("rate_hz", [50.0, 25.0, 12.5, 6.25])
def test_a_window_is_a_whole_number_of_tokens_and_cutting_there_changes_nothing(whisper: str, rate_hz: float):
    tokenizer = half(whisper, Clock(token_rate_hz=rate_hz))
    window = tokenizer.window_samples
    assert window % tokenizer.clock.samples_per_token == 0 and 29.9 < window / 16_000 <= 30.0
    audio = 0.1 * torch.randn(1, window + 5000, generator=torch.Generator().manual_seed(0))
    whole, _ = tokenizer.tokenize(audio, torch.tensor([window + 5000]))
    first, _ = tokenizer.tokenize(audio[:, :window], torch.tensor([window]))
    rest, _ = tokenizer.tokenize(audio[:, window:], torch.tensor([5000]))
    assert torch.equal(whole, torch.cat([first, rest], dim=1))


def test_the_hash_is_the_same_for_the_same_tokens_only(whisper: str, tmp_path: Path):
    own = half(whisper).hash
    assert half(whisper).hash == own
    assert half(whisper, activation_checkpointing=True).hash == own
    others = [
        half(whisper, Clock(token_rate_hz=25.0)), half(whisper, floor="running"), half(whisper, block_sec=2.0),
        half(whisper, causal_convs=False), half(whisper, second_positions="first"), half(whisper, quantizer="fsq"),
        half(whisper, quantizer="fsq of other levels"),
    ]  # fmt: skip
    assert len({own, *(other.hash for other in others)}) == 1 + len(others)
    trained = model(whisper)
    trained.encoder.quantizer.ema_count.add_(1.0)
    trained.encoder.layer_norm.weight.data.add_(1.0)
    trained.decoder.embed_tokens.weight.data.add_(1.0)
    assert WhisperTokens(trained.log_mel, trained.encoder, trained.clock).hash == own
    moved = model(whisper)
    moved.encoder.quantizer.codebook[3, 5] += 1e-6
    assert WhisperTokens(moved.log_mel, moved.encoder, moved.clock).hash != own


def test_a_model_without_a_codebook_is_no_tokenizer(whisper: str):
    bare = WhisperVQ(whisper, Clock())
    with pytest.raises(ValueError, match="needs a quantizer with a codebook"):
        WhisperTokens(bare.log_mel, bare.encoder, bare.clock)
    untrained = WhisperVQ(whisper, Clock(), None, lambda dim: EmaVQ(dim, 32))
    with pytest.raises(ValueError, match="needs a quantizer with a codebook"):
        WhisperTokens(untrained.log_mel, untrained.encoder, untrained.clock)


def test_pieces_join_to_what_was_split():
    lens = torch.tensor([7, 0, 3, 4])
    audio = torch.arange(28.0).view(4, 7)
    pieces, piece_lens, owner = split(audio, lens, 3)
    assert piece_lens.tolist() == [3, 3, 1, 0, 3, 3, 1] and owner == [0, 0, 0, 1, 2, 3, 3]
    joined, joined_lens = join(pieces, piece_lens, owner)
    assert torch.equal(joined_lens, lens)
    assert all(torch.equal(joined[b, : lens[b]], audio[b, : lens[b]]) for b in range(4))
    assert (joined[2, 3:] == -1).all()
