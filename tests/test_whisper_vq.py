"""Speech tokens: the same for a recording in any company, and never changed by what comes after their block."""

import pytest
import torch

from speechlm.nn.deep_fsq import DeepFSQ
from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.lookup_free import FSQ, SimVQ
from speechlm.nn.whisper_encoder import Bottleneck
from speechlm.nn.whisper_vq import WhisperVQ
from speechlm.tokens.clock import Clock
from tests.tiny_whisper import make_tiny_whisper

LENGTHS = [70_000, 16_000, 1_281, 100_123, 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_whisper(tmp_path_factory.mktemp("whisper")))


def build(folder: str, rate: float = 12.5, floor: str = "clip", quantizer=None, **bottleneck) -> WhisperVQ:
    torch.manual_seed(0)
    quantizer = quantizer or (lambda dim: EmaVQ(dim, 64, init="random"))
    model = WhisperVQ(folder, Clock(token_rate_hz=rate), Bottleneck(**bottleneck), quantizer, floor)
    if isinstance(model.encoder.quantizer, EmaVQ):  # codes among the vectors, so that neighbours can be told apart
        audio, lens = recordings()
        with torch.no_grad():
            x, _ = model.encoder.below(*model.log_mel(audio, lens))
        rows = x.flatten(0, 1)
        model.encoder.quantizer.codebook.copy_(rows[torch.randperm(len(rows))[: model.encoder.quantizer.num_codes]])
    return model.eval()


def recordings(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [0.1 * torch.randn(n, generator=generator) for n in LENGTHS]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(LENGTHS)


@pytest.mark.parametrize("rate", [50.0, 25.0, 12.5, 6.25])
@pytest.mark.parametrize("causal_convs", [True, False])
def test_a_recording_has_the_same_tokens_alone_padded_and_in_any_order(folder: str, rate: float, causal_convs: bool):
    model = build(folder, rate, causal_convs=causal_convs)
    audio, lens = recordings()
    tokens, token_lens = model.tokenize(audio, lens)
    assert token_lens.tolist() == [model.clock.num_tokens(n) for n in LENGTHS]
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled, _ = model.tokenize(torch.nn.functional.pad(audio[order], (0, 5000)), lens[order])
    for i, n in enumerate(LENGTHS):
        own = tokens[i, : token_lens[i]]
        alone, _ = model.tokenize(audio[i : i + 1, :n], lens[i : i + 1])
        assert torch.equal(alone[0], own)
        assert torch.equal(shuffled[order.tolist().index(i), : token_lens[i]], own)
    assert len(tokens[tokens >= 0].unique()) > 10  # the claim must not hold for want of different tokens


def test_audio_after_a_block_never_changes_the_tokens_before_it(folder: str):
    model = build(folder, floor="running")
    first = 0.1 * torch.randn(1, 160_000, generator=torch.Generator().manual_seed(0))
    second = first.clone()
    second[:, 128_000:] = torch.randn(1, 32_000, generator=torch.Generator().manual_seed(1))
    one, other = (model.tokenize(audio, torch.tensor([160_000]))[0] for audio in (first, second))
    assert torch.equal(one[:, :100], other[:, :100])  # two blocks of 4 s
    assert not torch.equal(one[:, 100:], other[:, 100:])


def test_pooling_may_come_before_the_layers_under_the_quantizer(folder: str):
    early, late = build(folder, pool_after=1, after_layer=2), build(folder, after_layer=2)
    audio, lens = recordings()
    (one, one_lens), (other, other_lens) = early.tokenize(audio, lens), late.tokenize(audio, lens)
    assert torch.equal(one_lens, other_lens) and one.shape == other.shape
    alone, _ = early.tokenize(audio[:1, : LENGTHS[0]], lens[:1])
    assert torch.equal(alone[0], one[0, : one_lens[0]])


def test_audio_inside_a_block_may_change_all_of_its_tokens(folder: str):
    model = build(folder, floor="running")
    first = 0.1 * torch.randn(1, 64_000, generator=torch.Generator().manual_seed(0))
    second = first.clone()
    second[:, 32_000:] = torch.randn(1, 32_000, generator=torch.Generator().manual_seed(1))
    one, other = (model.tokenize(audio, torch.tensor([64_000]))[0] for audio in (first, second))
    assert not torch.equal(one[:, :25], other[:, :25])


def test_a_long_recording_is_cut_into_thirty_seconds_that_know_nothing_of_each_other(folder: str):
    model = build(folder)
    audio = 0.1 * torch.randn(1, 700_000, generator=torch.Generator().manual_seed(0))
    whole, _ = model.tokenize(audio, torch.tensor([700_000]))
    pieces = [model.tokenize(p, torch.tensor([p.shape[1]]))[0] for p in (audio[:, :480_000], audio[:, 480_000:])]
    assert torch.equal(whole, torch.cat(pieces, dim=1))
    assert whole.shape[1] == model.clock.num_tokens(700_000)


def test_too_long_a_recording_is_refused_where_it_can_not_be_cut(folder: str):
    model = build(folder)
    with pytest.raises(ValueError, match="longer than the 30 s Whisper can see"):
        model.transcribe(torch.zeros(1, 500_000), torch.tensor([500_000]))


@pytest.mark.parametrize(
    ("quantizer", "codes"),
    [(lambda d: FSQ(d, [8, 5, 5]), 200), (lambda d: SimVQ(d, 128), 128), (lambda d: EmaVQ(d, 32, init="random"), 32)],
)
def test_every_quantizer_learns_through_its_codes_and_reads_them_back(folder: str, quantizer, codes: int):
    model = build(folder, quantizer=quantizer).train()
    audio, lens = recordings()
    inputs, labels = model.text.encode(["one two"] * len(lens))
    scored = model.score(audio, lens, inputs)
    (model.asr_loss(scored, labels) + scored.quantized.loss).backward()
    assert torch.isfinite(model.encoder.conv1.weight.grad).all()
    assert model.encoder.conv1.weight.grad.abs().sum() > 0
    assert model.encoder.quantizer.num_codes == codes
    kept = scored.quantized.codes[0, : scored.state_lens[0]]
    assert 0 <= int(kept.min()) and int(kept.max()) < codes
    decoded = model.encoder.quantizer.decode(kept)
    torch.testing.assert_close(decoded, scored.quantized.vectors[0, : len(kept)].detach(), atol=1e-4, rtol=1e-4)


def test_recomputing_layers_in_the_backward_pass_changes_no_gradient_and_no_codebook(folder: str):
    results = []
    for checkpointing in (False, True):
        model = build(folder, activation_checkpointing=checkpointing).train()
        audio, lens = recordings()
        inputs, labels = model.text.encode(["one two"] * len(lens))
        scored = model.score(audio, lens, inputs)
        (model.asr_loss(scored, labels) + scored.quantized.loss).backward()
        model.encoder.quantizer.update()
        results.append((model.encoder.conv1.weight.grad, model.encoder.quantizer.codebook))
    torch.testing.assert_close(results[0], results[1])


def test_a_bottleneck_outside_the_encoder_is_refused(folder: str):
    with pytest.raises(ValueError, match="a quantiser after layer 3 are not inside it"):
        build(folder, after_layer=3)


def test_the_decoder_ignores_padded_states(folder: str):
    model = build(folder)
    audio, lens = recordings()
    together = model.transcribe(audio, lens)
    alone = [model.transcribe(audio[i : i + 1, :n], lens[i : i + 1])[0] for i, n in enumerate(LENGTHS)]
    # the bound on length depends on the longest of a batch, so a looping transcript may end later in company
    assert all(t.startswith(a) for t, a in zip(together, alone, strict=True))


@pytest.mark.parametrize("quantizer", [None, lambda dim: DeepFSQ(dim, [5, 3], init_updates=0)], ids=["nearest", "deep"])
def test_tokens_are_read_as_the_recording_they_are_of(folder: str, quantizer):
    model = build(folder, quantizer=quantizer)
    audio, lens = recordings()
    tokens, token_lens = model.tokenize(audio, lens)
    texts = model.read(tokens, token_lens)
    assert texts == model.transcribe(audio, lens) and any(texts)
    others = model.read(torch.where(tokens >= 0, (tokens + 7) % model.encoder.quantizer.num_codes, -1), token_lens)
    assert others != texts


def test_what_are_no_tokens_is_not_read(folder: str):
    model = build(folder)
    for bad in (-1, 64):
        with pytest.raises(ValueError, match=rf"lie in \[0, 64\), got {bad} at position 1"):
            model.read(torch.tensor([[3, bad, 5]]), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"lengths from 1 to 2, got \[0, 2\]"):
        model.read(torch.zeros(2, 2, dtype=torch.long), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="at most 375 a row, got 376"):
        model.read(torch.zeros(1, 376, dtype=torch.long), torch.tensor([376]))
    with pytest.raises(ValueError, match="without a quantiser"):
        WhisperVQ(folder, Clock()).read(torch.zeros(1, 2, dtype=torch.long), torch.tensor([2]))


def test_there_are_no_tokens_before_there_is_a_codebook(folder: str):
    model = WhisperVQ(folder, Clock(), quantizer=lambda dim: EmaVQ(dim, 8, init_updates=3))
    with pytest.raises(ValueError, match="the codebook has not been made from data yet"):
        model.tokenize(*recordings())
    with pytest.raises(ValueError, match="it has no speech tokens"):
        WhisperVQ(folder, Clock()).tokenize(*recordings())
