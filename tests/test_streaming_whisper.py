"""A stream gives the tokens of the whole recording, whatever the pieces it comes in, for as long as it lasts."""

import random
import tracemalloc
from pathlib import Path

import pytest
import torch

from speechlm.nn.block_attention import KeyValueCache
from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.glm4voice import load_tokenizer
from speechlm.nn.log_mel import LogMel
from speechlm.nn.pieces import split
from speechlm.nn.streaming_whisper import TokenStream
from speechlm.nn.whisper_encoder import Bottleneck
from speechlm.nn.whisper_tokens import WhisperTokens
from speechlm.nn.whisper_vq import WhisperVQ
from speechlm.tokens.clock import Clock
from tests.tiny_whisper import make_tiny_whisper

GOLDEN = Path(__file__).parent / "golden" / "glm4voice_tokenizer"
RATES = [50.0, 25.0, 12.5, 6.25]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_whisper(tmp_path_factory.mktemp("whisper"), layers=4))


def sound(num_samples: int, seed: int = 0) -> torch.Tensor:
    """Noise whose loudness wanders, so that the floor of the log-mel matters."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_samples // 4000 + 2, generator=generator).cumsum(0)[None, None]
    loudness = torch.nn.functional.interpolate(steps, num_samples, mode="linear")[0, 0]
    return 0.05 * torch.randn(num_samples, generator=generator) * torch.exp(2 * loudness.clamp(-5, 2))


def with_codes(tokens: WhisperTokens) -> WhisperTokens:
    """Codes among the vectors, so that neighbours can be told apart."""
    audio = sound(160_000, seed=9)[None]
    piece = min(160_000, tokens.window_samples)
    with torch.no_grad():
        x, _ = tokens.encoder.below(*tokens.log_mel(audio[:, :piece], torch.tensor([piece])))
    picks = torch.randint(x.shape[1], (64,), generator=torch.Generator().manual_seed(0))
    tokens.encoder.quantizer.codebook.copy_(x[0, picks])
    return tokens


def ours(folder: str, rate: float = 12.5, floor: str = "running", **bottleneck) -> WhisperTokens:
    clock = Clock(token_rate_hz=rate)
    settings = Bottleneck(**bottleneck)
    model = WhisperVQ(folder, clock, settings, lambda dim: EmaVQ(dim, 64, init="random"), floor)
    return with_codes(WhisperTokens(model.log_mel, model.encoder, clock))


def released(floor: str = "running") -> WhisperTokens:
    """Tiny weights in the released form: blocks of 0.16 s, pieces of 1.2 s."""
    encoder, _ = load_tokenizer(GOLDEN)
    return with_codes(WhisperTokens(LogMel(16, 1280, floor), encoder, Clock()))


def offline(tokens: WhisperTokens, audio: torch.Tensor) -> list[int]:
    return tokens.tokenize(audio[None], torch.tensor([len(audio)]))[0][0].tolist()


def assert_same(tokens: WhisperTokens, audio: torch.Tensor, given: list[int]) -> list[int]:
    """The offline tokens, but where two codes are equally near up to rounding; there either may come out, on any machine."""
    whole = offline(tokens, audio)
    assert len(given) == len(whole)
    places = [i for i, pair in enumerate(zip(given, whole, strict=True)) if pair[0] != pair[1]]
    pieces, piece_lens, _ = split(audio[None], torch.tensor([len(audio)]), tokens.window_samples)
    x, lens = tokens.encoder.below(*tokens.log_mel(pieces, piece_lens))
    x = torch.cat([row[:n] for row, n in zip(x, lens, strict=True)])[places].detach().double()
    sides = [tokens.encoder.quantizer.codebook[torch.tensor(ids)[places]].double() for ids in (given, whole)]
    one, other = ((x - side).square().sum(dim=1) for side in sides)
    rounding = 1e-6 * sum(v.square().sum(dim=1) for v in (x, *sides))
    assert torch.all((one - other).abs() <= rounding), places
    assert len(places) <= 1 + len(whole) // 1000
    return whole


def chunks_of(audio: torch.Tensor, seed: int, largest: int) -> list[torch.Tensor]:
    """Pieces of random sizes, empty ones among them."""
    draw, sizes, left = random.Random(seed), [], len(audio)
    while left:
        sizes.append(min(left, draw.choice([0, 1, draw.randint(1, 500), draw.randint(1, largest)])))
        left -= sizes[-1]
    return list(audio.split(sizes))


def streamed(stream: TokenStream, chunks: list[torch.Tensor]) -> list[int]:
    given = [token for chunk in chunks for token in stream.push(chunk).tolist()]
    return given + stream.flush().tolist()


@pytest.mark.parametrize("num_samples", [1, 319, 1280, 64_000, 64_001, 127_999, 150_123])
@pytest.mark.parametrize("rate", RATES)
def test_pieces_of_any_size_give_the_tokens_of_the_whole(folder: str, rate: float, num_samples: int):
    tokens, audio = ours(folder, rate), sound(num_samples, seed=num_samples)
    given = [streamed(tokens.stream(), chunks_of(audio, seed, 40_000)) for seed in range(3)]
    assert given[0] == given[1] == given[2] == streamed(tokens.stream(), [audio])
    whole = assert_same(tokens, audio, given[0])
    assert len(whole) == tokens.clock.num_tokens(num_samples)
    assert num_samples < 100_000 or len(set(whole)) > 5  # the claim must not hold for want of different tokens


@pytest.mark.parametrize("num_samples", [3, 1279, 2560, 2561, 19_199, 19_200, 19_201, 60_000])
def test_the_released_form_streams_too(num_samples: int):
    tokens, audio = released(), sound(num_samples, seed=num_samples)
    given = [streamed(tokens.stream(), chunks_of(audio, seed, 5000)) for seed in range(3)]
    assert given[0] == given[1] == given[2]
    whole = assert_same(tokens, audio, given[0])
    assert num_samples < 60_000 or len(set(whole)) > 5


@pytest.mark.parametrize("padded_end", ["heard", "masked"])
def test_the_vectors_of_an_end_that_does_not_fill_its_token_are_those_of_the_whole(folder: str, padded_end: str):
    tokens = ours(folder, rate=6.25, padded_end=padded_end)
    vectors: list[torch.Tensor] = []
    tokens.encoder.quantizer.register_forward_pre_hook(lambda _, args: vectors.append(args[0][0]))
    for num_samples in (1, 321, 65_000, 69_000, 130_560):
        audio = sound(num_samples)
        vectors.clear()
        streamed(tokens.stream(), [audio])
        given = torch.cat(vectors)
        offline(tokens, audio)
        torch.testing.assert_close(given, vectors[-1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("num_samples", [480_000, 480_001, 1_003_333])
def test_recordings_longer_than_whisper_sees_are_cut_as_they_are_offline(folder: str, rate: float, num_samples: int):
    tokens, audio = ours(folder, rate), sound(num_samples)
    given = streamed(tokens.stream(), chunks_of(audio, 0, 100_000))
    assert given == streamed(tokens.stream(), [audio])
    assert len(assert_same(tokens, audio, given)) == tokens.clock.num_tokens(num_samples)


@pytest.mark.parametrize(
    "bottleneck", [{"block_sec": 0.32}, {"block_sec": 1.28, "pool_after": 1}, {"block_sec": None}, {"after_layer": 4}]
)
@pytest.mark.parametrize("second_positions", ["moved", "first"])
def test_every_bottleneck_with_causal_convolutions_streams(folder: str, second_positions: str, bottleneck: dict):
    tokens, audio = ours(folder, second_positions=second_positions, **bottleneck), sound(500_000)
    assert_same(tokens, audio, streamed(tokens.stream(), chunks_of(audio, 0, 30_000)))


def test_the_tokens_of_a_block_come_with_its_last_sample_and_not_before(folder: str):
    stream = ours(folder).stream()
    assert stream.delay_sec == 4.0
    assert len(stream.push(sound(63_999))) == 0
    assert len(stream.push(sound(1))) == 50
    assert ours(folder, block_sec=0.32).stream().delay_sec == 0.32
    assert ours(folder, block_sec=None).stream().delay_sec == 30.0


def test_streams_over_one_model_know_nothing_of_each_other(folder: str):
    tokens = ours(folder)
    sounds = [sound(150_000, seed) for seed in (1, 2)]
    streams, given = [tokens.stream() for _ in sounds], [[], []]
    for chunk in range(0, 150_000, 10_000):
        for i, stream in enumerate(streams):
            given[i] += stream.push(sounds[i][chunk : chunk + 10_000]).tolist()
    for i, stream in enumerate(streams):
        assert_same(tokens, sounds[i], given[i] + stream.flush().tolist())
        assert (stream.num_samples, stream.num_tokens) == (150_000, 118)


def test_each_position_goes_through_each_layer_once(folder: str):
    tokens, seen = ours(folder, rate=50.0), []
    for layer in tokens.encoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    streamed(tokens.stream(), chunks_of(sound(320_000), 0, 40_000))
    assert sum(seen) == 1000 * len(tokens.encoder.layers)


def test_memory_is_as_flat_as_the_stream_is_long(folder: str, monkeypatch: pytest.MonkeyPatch):
    rooms: list[int] = []
    attend = KeyValueCache.attend

    def counted(self: KeyValueCache, *qkv: torch.Tensor) -> torch.Tensor:
        out = attend(self, *qkv)
        rooms.append(self.keys.numel())
        return out

    monkeypatch.setattr(KeyValueCache, "attend", counted)
    stream, chunk, kept = ours(folder, block_sec=0.32).stream(), sound(5120), []
    tracemalloc.start()
    for i in range(400):  # 2.1 minutes
        stream.push(chunk)
        if i in (200, 399):
            kept.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert stream.num_tokens == 1600
    assert kept[1] - kept[0] < 50_000 + 100 * 200  # bytes: `rooms` itself grows by one number a layer and block
    assert set(rooms) == {1500 * 16}


def test_an_empty_recording_has_no_tokens(folder: str):
    tokens = ours(folder)
    assert streamed(tokens.stream(), []) == offline(tokens, torch.zeros(0)) == []


def test_the_floor_of_the_whole_recording_is_refused_and_may_be_approximated(folder: str):
    clip, running = ours(folder, floor="clip"), ours(folder)
    with pytest.raises(ValueError, match="floor 'clip' hangs from the loudest frame of the whole recording"):
        clip.stream()
    loud_first = sound(200_000)
    loud_first[5000:6000] = torch.randn(1000, generator=torch.Generator().manual_seed(5))
    approximate = streamed(clip.stream(approximate_floor=True), chunks_of(loud_first, 0, 30_000))
    assert_same(clip, loud_first, approximate)  # the loudest frame is in the first block
    assert_same(running, loud_first, streamed(running.stream(approximate_floor=True), [loud_first]))
    quiet_first = 1e-3 * sound(200_000)
    quiet_first[150_000:] = torch.randn(50_000, generator=torch.Generator().manual_seed(5))
    with pytest.raises(AssertionError):
        assert_same(clip, quiet_first, streamed(clip.stream(approximate_floor=True), [quiet_first]))


def test_what_can_not_be_streamed_is_refused_by_name(folder: str):
    with pytest.raises(ValueError, match="convolutions that see the future can not be streamed"):
        ours(folder, causal_convs=False).stream()
    model = WhisperVQ(folder, Clock(), floor="running").eval()
    with pytest.raises(ValueError, match="needs a quantizer with a codebook"):
        model.stream()
    tokens = ours(folder)
    tokens.encoder.train()
    with pytest.raises(ValueError, match="needs a model in eval mode"):
        tokens.stream()


def test_a_chunk_that_is_no_sound_is_refused_and_the_stream_goes_on(folder: str):
    tokens, audio = ours(folder), sound(100_000)
    stream = tokens.stream()
    given = stream.push(audio[:70_000]).tolist()
    spoilt = audio[:100].clone()
    spoilt[50] = float("nan")
    for wrong, said in [
        (spoilt, "NaN or infinity"),
        (audio[None], r"a row \(N,\) of samples"),
        (torch.zeros(5, dtype=torch.int16), "got torch.int16"),
    ]:
        with pytest.raises(ValueError, match=said):
            stream.push(wrong)
    assert_same(tokens, audio, given + stream.push(audio[70_000:]).tolist() + stream.flush().tolist())
    for call in (stream.flush, lambda: stream.push(audio)):
        with pytest.raises(ValueError, match="this stream has ended"):
            call()


def test_a_tokenizer_stage_opens_streams(folder: str):
    from speechlm.stages.speech_tokenizer import SpeechTokenizer

    stage = SpeechTokenizer(Clock(), folder, lambda dim: EmaVQ(dim, 64, init="random"), floor="running").eval()
    audio = sound(100_000)
    assert streamed(stage.stream(), [audio]) == stage.tokenize(audio[None], torch.tensor([100_000]))[0][0].tolist()
