"""What a flow decoder refuses beside tokens that are none: speakers and prompts, with what was expected and what to do."""

from torch import Tensor

from speechlm.nn.token_input import require_tokens
from speechlm.nn.token_to_mel import Prompt, TokenToMel
from speechlm.tokens.clock import Clock


def require_speakers(speakers: Tensor | None, batch_size: int, network: TokenToMel) -> None:
    """Refuse speaker vectors of another shape, or with NaN."""
    if speakers is None:
        return
    expected = (batch_size, network.speaker_width)
    if tuple(speakers.shape) != expected or not bool(speakers.isfinite().all()):
        raise ValueError(f"speakers are finite vectors {expected}, got {tuple(speakers.shape)} or NaN")


def require_prompt(prompt: Prompt | None, batch_size: int, network: TokenToMel, max_sec: float) -> None:
    """Refuse a prompt that does not fit.

    Raises:
        ValueError: wrong tokens, other mel bins, NaN, a mel that is not as long as its tokens, or longer than `max_sec`.
    """
    if prompt is None:
        return
    require_tokens(prompt.tokens, prompt.token_lens, network.num_tokens, "the prompt's tokens")
    shape = (batch_size, network.num_mels)
    if len(prompt.tokens) != batch_size or tuple(prompt.mel.shape[:2]) != shape or prompt.mel.ndim != 3:
        raise ValueError(
            f"the prompt has {batch_size} rows of tokens and log-mels ({shape[0]}, {shape[1]}, F), got "
            f"{len(prompt.tokens)} and {tuple(prompt.mel.shape)}"
        )
    if not bool(prompt.mel.isfinite().all()):
        raise ValueError("the prompt's log-mel has NaN or infinite values")
    seconds = network.clock.seconds_of_tokens(int(prompt.token_lens.max()))
    if seconds > max_sec:
        raise ValueError(
            f"the prompt is {seconds:.2f} s long, the limit is {max_sec:g} s; cut it or raise `max_prompt_sec`"
        )
    most = network.clock.frames_of_tokens(prompt.token_lens)
    least = network.clock.frames_of_tokens(prompt.token_lens - 1)
    if bool((prompt.mel_lens > most).any()) or bool((prompt.mel_lens <= least).any()):
        raise ValueError(
            f"the prompt's {prompt.token_lens.tolist()} tokens fill {least.tolist()} to {most.tolist()} mel frames at "
            f"{rates(network.clock)}, got {prompt.mel_lens.tolist()}; both must be of the same recording, at the decoder's rates"
        )


def rates(clock: Clock) -> str:
    """A clock in words."""
    return f"{clock.sample_rate_hz} Hz, hop {clock.hop_samples}, {clock.token_rate_hz:g} tokens per second"
