"""What a network refuses to take for speech tokens, with what was expected, what came, and where."""

from torch import Tensor

from speechlm.nn.masks import length_mask


def require_tokens(
    tokens: Tensor, lens: Tensor, num_tokens: int, whose: str = "speech_tokens", max_tokens: int | None = None
) -> None:
    """Refuse what are no speech tokens.

    Args:
        tokens: (B, T) ids; what lies behind a row's end is not looked at.
        lens: (B,) tokens.
        num_tokens: size of the codebook.
        whose: name in messages.
        max_tokens: longest T that the network takes.

    Raises:
        ValueError: another shape or type, a row without tokens, a length that is not there, an id outside the codebook.
    """
    if tokens.ndim != 2 or tokens.dtype.is_floating_point or lens.shape != tokens.shape[:1] or not len(lens):
        raise ValueError(
            f"{whose} are integers (B, T) with (B,) lengths, got {tuple(tokens.shape)} {tokens.dtype} with {tuple(lens.shape)}"
        )
    if bool((lens < 1).any()) or bool((lens > tokens.shape[1]).any()):
        raise ValueError(f"{whose} have lengths from 1 to {tokens.shape[1]}, got {lens.tolist()}")
    if max_tokens is not None and tokens.shape[1] > max_tokens:
        raise ValueError(f"{whose} are at most {max_tokens} a row, got {tokens.shape[1]}")
    require_ids(tokens, num_tokens, whose, length_mask(lens, tokens.shape[1]))


def require_ids(tokens: Tensor, num_tokens: int, whose: str = "speech_tokens", inside: Tensor | None = None) -> None:
    """Refuse (B, T) ids that no codebook of `num_tokens` has, where they are `inside`: (B, T) bool.

    Raises:
        ValueError: says which id, and where.
    """
    wrong = (tokens < 0) | (tokens >= num_tokens)
    wrong = (wrong if inside is None else wrong & inside).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()
        raise ValueError(
            f"{whose} lie in [0, {num_tokens}), got {int(tokens[row, place])} at position {place} of row {row}; they must be of "
            f"the tokenizer that the model was trained with"
        )
