"""A second reader beside the decoder: letters, straight from each vector, so that vectors learn to say what was said.

The decoder can guess words from words, and with hours of speech it learns that before it learns to listen. A linear reader of
letters can not guess: its gradient reaches the bottleneck from the first step on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLANK = 0


@dataclass(frozen=True)
class Letters:
    """Weights of the loss of letters.

    Args:
        before: on vectors before the quantiser.
        behind: on quantised vectors.
        per_token: letters that one vector may say; speech has up to 20 a second.
        alphabet: letters that are read, of transcripts in small letters; a transcript without any of them costs nothing.
    """

    before: float = 0.15
    behind: float = 0.5
    per_token: int = 2
    alphabet: str = " 'abcdefghijklmnopqrstuvwxyz"

    def __post_init__(self) -> None:
        if min(self.before, self.behind) < 0 or self.per_token < 1 or len(set(self.alphabet)) != len(self.alphabet):
            raise ValueError(
                f"letters need weights >= 0, per_token >= 1 and an alphabet without repetition, got {self}"
            )


class LetterCTC(nn.Module):
    """Connectionist temporal classification of letters from vectors, by one linear map.

    Args:
        dim: D of the vectors.
        letters: alphabet, and how many letters one vector may say.
    """

    def __init__(self, dim: int, letters: Letters) -> None:
        super().__init__()
        self.letters = letters
        self.head = nn.Linear(dim, letters.per_token * (len(letters.alphabet) + 1))

    def forward(self, vectors: Tensor, lens: Tensor, texts: Sequence[str]) -> Tensor:
        """Mean loss per letter, in nats.

        Args:
            vectors: (B, T, D).
            lens: (B,) vectors.
            texts: B transcripts.
        """
        targets = [self.encode(text) for text in texts]
        sizes = torch.tensor([len(target) for target in targets], device=vectors.device)
        with torch.autocast(vectors.device.type, enabled=False):
            logits = self.head(F.layer_norm(vectors.float(), vectors.shape[-1:]))
            heard = logits.view(len(vectors), -1, len(self.letters.alphabet) + 1).log_softmax(-1)
            flat = torch.tensor([i for target in targets for i in target], device=vectors.device)
            loss = F.ctc_loss(
                heard.transpose(0, 1),
                flat,
                lens * self.letters.per_token,
                sizes,
                BLANK,
                reduction="none",
                zero_infinity=True,
            )
        said = sizes > 0
        return loss[said].sum() / sizes.sum().clamp(min=1)

    def encode(self, text: str) -> list[int]:
        """Letters of the alphabet in a transcript, from 1 on; other characters are passed over."""
        return [place + 1 for letter in text.lower() if (place := self.letters.alphabet.find(letter)) >= 0]
