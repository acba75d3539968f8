"""Seconds, samples, frames and tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlm.tokens.clock import Clock

RATES = [50.0, 25.0, 12.5, 6.25]


def test_the_published_examples():
    clock = Clock()
    assert clock.samples_per_token == 1280
    assert clock.num_tokens(30 * 16_000) == 375
    assert clock.num_tokens(16_000) == 13
    decoder = Clock(sample_rate_hz=22_050, token_rate_hz=12.5, hop_samples=256)
    assert decoder.samples_per_token == 1764
    assert [decoder.frames_of_tokens(n) for n in (10, 25, 26, 50)] == [68, 172, 179, 344]


@given(st.integers(0, 10**9), st.sampled_from(RATES))
def test_tokens_cover_a_recording_and_not_one_more(num_samples: int, rate: float):
    clock = Clock(token_rate_hz=rate)
    tokens = clock.num_tokens(num_samples)
    assert clock.samples_of_tokens(tokens) >= num_samples > clock.samples_of_tokens(tokens - 1)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.sampled_from(RATES))
def test_whole_tokens_add_up(first: int, second: int, rate: float):
    clock = Clock(token_rate_hz=rate)
    assert clock.num_tokens(clock.samples_of_tokens(first + second)) == first + second


@pytest.mark.parametrize(("rate", "kernel"), [(50.0, 1), (25.0, 2), (12.5, 4), (6.25, 8)])
def test_pooling_follows_from_the_rates(rate: float, kernel: int):
    assert Clock(token_rate_hz=rate).pooling(50.0) == kernel


def test_a_token_of_a_broken_number_of_samples_is_refused_with_the_values_and_the_place_to_edit():
    with pytest.raises(ValueError, match=r"16000 Hz / 12.7 Hz = 1259\.84; edit `clock`"):
        Clock(token_rate_hz=12.7)


def test_positions_that_tokens_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"edit `clock\.token_rate_hz`"):
        Clock(token_rate_hz=20.0).pooling(50.0)


@pytest.mark.parametrize("field", ["sample_rate_hz", "token_rate_hz", "hop_samples"])
def test_rates_must_be_positive(field: str):
    with pytest.raises(ValueError, match="every rate must be positive"):
        Clock(**{field: 0})


@given(st.integers(0, 10**5), st.sampled_from([1, 5, 10]))
def test_frames_of_a_block_need_no_later_token(block: int, block_tokens: int):
    clock = Clock(sample_rate_hz=22_050, token_rate_hz=12.5, hop_samples=256)
    first, behind = (clock.frames_of_tokens(block_tokens * number) for number in (block, block + 1))
    assert {clock.block_of_frame(frame, block_tokens) for frame in (first, behind - 1)} == {block}
    assert clock.token_of_frame(behind - 1) < block_tokens * (block + 1)


def test_frames_and_tokens_of_the_decoder_by_hand():
    clock = Clock(sample_rate_hz=22_050, token_rate_hz=12.5, hop_samples=256)
    assert [clock.frames_of_tokens(n) for n in (1, 10, 25, 26, 50)] == [6, 68, 172, 179, 344]
    # 1764 samples a token: frame 6 is samples 1536 to 1792, its middle 1664; frame 7 has its middle at 1920.
    assert [clock.token_of_frame(frame) for frame in (0, 6, 7, 68, 69)] == [0, 0, 1, 9, 10]
    frames = torch.tensor([67, 68, 137])
    assert clock.block_of_frame(frames, 10).tolist() == [0, 1, 2]
    assert clock.token_of_frame(frames).tolist() == [9, 9, 19]
