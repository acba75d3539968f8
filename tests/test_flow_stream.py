"""Streams of mel: every border, every way of cutting, bounded work."""

import pytest
import torch
from torch import Tensor

from speechlm.nn.flow_stream import CachedStream, MelStream, WindowStream
from speechlm.nn.token_to_mel import Prompt, Sampling
from tests.test_token_to_mel import prompt_of
from tests.tiny_flow import CLOCK, FORMS, M, V, causal, released, tokens_of

FEW = Sampling(steps=3)
TOLERANCE = 1e-4  # as docs/flow_decoder.md states it
SEEDS = torch.tensor([7, 8])


def spoken(stream: MelStream, tokens: Tensor, *cuts: int) -> list[Tensor]:
    """What a stream gives out at each push, the tokens being cut here."""
    parts = tokens.tensor_split(cuts, dim=1)
    return [stream.push(part, last=i == len(cuts)) for i, part in enumerate(parts)]


@pytest.mark.parametrize("left_blocks", [0, 1, None])
@pytest.mark.parametrize(("guidance", "start"), [(0.7, 0.0), (0.0, 0.0), (0.7, 0.5)])
@torch.no_grad()
def test_a_causal_stream_is_the_whole_at_every_border(left_blocks: int | None, guidance: float, start: float):
    network, (tokens, _) = causal(left_blocks), tokens_of(57, 57)
    sampling = Sampling(steps=3, guidance=guidance, temperature=0.8, start=start)
    speakers = torch.randn(2, 6)
    whole = network.sample(tokens, torch.tensor([57, 57]), SEEDS, speakers, sampling=sampling).mel
    stream = CachedStream(network, SEEDS, speakers=speakers, sampling=sampling)
    chunks = spoken(stream, tokens, 10, 20, 30, 40, 50)
    assert [chunk.shape[2] for chunk in chunks] == [68, 69, 69, 69, 69, 48]  # 6.89 a token
    assert (torch.cat(chunks, 2) - whole).abs().max() < TOLERANCE
    for border in torch.tensor([chunk.shape[2] for chunk in chunks]).cumsum(0)[:-1].tolist():
        around = slice(border - 2, border + 2)
        assert (torch.cat(chunks, 2)[:, :, around] - whole[:, :, around]).abs().max() < TOLERANCE


@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (9, 11, 35), (10, 10, 40), (57,)])
@pytest.mark.parametrize(("first", "chunk"), [(10, 10), (20, 30)])
@pytest.mark.parametrize("kind", [CachedStream, WindowStream])
def test_how_tokens_arrive_changes_nothing(kind: type[MelStream], first: int, chunk: int, cuts: tuple[int, ...]):
    network, (tokens, _) = causal(), tokens_of(57, 57)
    sizes = {"first_tokens": first, "chunk_tokens": chunk, "sampling": FEW}
    whole = torch.cat(spoken(kind(network, SEEDS, **sizes), tokens), 2)
    parts = torch.cat(spoken(kind(network, SEEDS, **sizes), tokens, *cuts), 2)
    assert whole.shape == parts.shape == (2, M, CLOCK.frames_of_tokens(57))
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("form", FORMS)
def test_the_first_chunk_comes_with_its_last_token(form: str):
    stream = WindowStream(FORMS[form](), SEEDS[:1], first_tokens=20, chunk_tokens=10, sampling=FEW)
    tokens, _ = tokens_of(40)
    assert stream.push(tokens[:, :19]).shape[2] == 0
    assert stream.push(tokens[:, 19:20]).shape[2] == CLOCK.frames_of_tokens(20)
    assert stream.push(tokens[:, 20:29]).shape[2] == 0
    assert stream.push(tokens[:, 29:30]).shape[2] == CLOCK.frames_of_tokens(30) - CLOCK.frames_of_tokens(20)


@torch.no_grad()
def test_a_window_that_holds_everything_is_the_papers_procedure():
    """All tokens so far in, all mel so far as the prompt, the noise of each frame its own."""
    network, (tokens, _) = released(), tokens_of(27)
    chunks = spoken(WindowStream(network, SEEDS[:1], window_tokens=100, sampling=FEW), tokens, 10, 20)
    made = network.sample(tokens[:, :10], torch.tensor([10]), SEEDS[:1], sampling=FEW).mel
    for start, stop in ((10, 20), (20, 27)):
        lens, frames = torch.tensor([start]), torch.tensor([made.shape[2]])
        prompt = Prompt(tokens[:, :start], lens, made, frames)
        more = network.sample(
            tokens[:, start:stop], torch.tensor([stop - start]), SEEDS[:1], prompt=prompt, sampling=FEW
        )
        made = torch.cat([made, more.mel], 2)
    assert (torch.cat(chunks, 2) - made).abs().max() < TOLERANCE


def test_a_window_hears_nothing_before_it():
    network, (tokens, _) = released(), tokens_of(40)
    other = tokens.clone()
    other[:, :20] = (other[:, :20] + 1) % V
    one, two = (WindowStream(network, SEEDS[:1], window_tokens=10, sampling=FEW) for _ in range(2))
    for stream, said in ((one, tokens), (two, other)):
        stream.push(said[:, :30])
    two.mel = one.mel  # what was said differently is made differently, and is the next chunk's prompt
    assert torch.equal(one.push(tokens[:, 30:], last=True), two.push(other[:, 30:], last=True))


@pytest.mark.parametrize("prompt_tokens", [4, 10, 23])
@torch.no_grad()
def test_a_stream_goes_on_with_a_prompt_as_the_whole_does(prompt_tokens: int):
    network, (tokens, lens) = causal(), tokens_of(31)
    prompt = prompt_of(prompt_tokens)
    whole = network.sample(tokens, lens, SEEDS[:1], prompt=prompt, sampling=FEW).mel
    cached = torch.cat(spoken(CachedStream(network, SEEDS[:1], prompt=prompt, sampling=FEW), tokens, 13), 2)
    assert cached.shape == whole.shape
    assert (cached - whole).abs().max() < TOLERANCE
    window = WindowStream(released(), SEEDS[:1], 100, prompt=prompt, sampling=FEW)
    assert torch.cat(spoken(window, tokens, 13), 2).shape == whole.shape


def test_what_a_stream_keeps_and_does_does_not_grow(monkeypatch: pytest.MonkeyPatch):
    """Positions that attention looks at, over a long stream, are those of the first few chunks."""
    network, (tokens, _) = causal(), tokens_of(400)
    looked: list[int] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, v: Tensor, **settings: object) -> Tensor:
        looked.append(q.numel() * k.shape[2])
        return attend(q, k, v, **settings)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", counted)
    for stream in (CachedStream(network, SEEDS[:1], sampling=FEW), WindowStream(network, SEEDS[:1], 20, sampling=FEW)):
        work, kept = [], []
        for part in tokens.split(10, dim=1):
            looked.clear()
            stream.push(part)
            work.append(sum(looked))
            kept.append(sum(tensor.numel() for tensor in tensors_of(vars(stream))))
        assert max(work[3:]) <= 1.05 * work[3]  # 68 or 69 frames a chunk
        assert max(kept[3:]) <= 1.05 * kept[3]


def tensors_of(value: object) -> list[Tensor]:
    """Every tensor in nested states, a network's own apart."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    return [tensor for item in value for tensor in tensors_of(item)] if isinstance(value, list | tuple) else []


def test_bad_input_is_refused():
    network, one = causal(), SEEDS[:1]
    with pytest.raises(ValueError, match="whole blocks of 10 tokens, got 10 and 15"):
        CachedStream(network, one, chunk_tokens=15)
    with pytest.raises(ValueError, match="StretchedTokens with UNet sees what is to come"):
        CachedStream(released(), one)
    with pytest.raises(ValueError, match="window_tokens must be at least 0"):
        WindowStream(network, one, -1)
    with pytest.raises(ValueError, match="all 12 tokens and 82 frames long"):
        CachedStream(network, SEEDS, prompt=prompt_of(12, 3))
    stream = CachedStream(network, one, sampling=FEW)
    with pytest.raises(ValueError, match=r"tokens \(1, T\), got \(2, 5\)"):
        stream.push(torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"lie in \[0, 32\), got 32 at"):
        stream.push(torch.tensor([[5, 32]]))
    with pytest.raises(ValueError, match="this stream had none"):
        stream.push(torch.zeros(1, 0, dtype=torch.long), last=True)
    assert stream.push(torch.tensor([[5]]), last=True).shape == (1, M, 6)
    with pytest.raises(ValueError, match="has had its last tokens"):
        stream.push(torch.tensor([[5]]))
