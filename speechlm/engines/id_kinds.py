"""What each id of a vocabulary can be in a reply."""

from collections.abc import Collection

import torch
from torch import Tensor

from speechlm.engines.streaming import Kind
from speechlm.tokens.vocab import Vocab


class IdKinds:
    """Text, speech, or nothing that a reply can have: control tokens, specials of the text tokenizer, padding of the matrix.

    Args:
        vocab: of the ids.
        specials: ids of the text tokenizer that are no text.
    """

    def __init__(self, vocab: Vocab, specials: Collection[int] = ()) -> None:
        self.vocab, self.specials = vocab, frozenset(specials)

    def kind(self, shared_id: int, end: int) -> Kind:
        """What an id is; any integer may be asked about."""
        if shared_id == end:
            return Kind.END
        if self.vocab.speech_offset <= shared_id < len(self.vocab):
            return Kind.SPEECH
        if 0 <= shared_id < self.vocab.num_text and shared_id not in self.specials:
            return Kind.TEXT
        return Kind.NONE

    def table(self, end: int, size: int, device: torch.device) -> Tensor:
        """(8, size) float: row number `Kind` is 0 where an id is of one of its kinds, and minus infinity elsewhere."""
        kinds = torch.zeros(size, dtype=torch.long)
        kinds[: self.vocab.num_text] = int(Kind.TEXT)
        kinds[sorted(i for i in self.specials if i < size)] = int(Kind.NONE)
        kinds[self.vocab.speech_offset : len(self.vocab)] = int(Kind.SPEECH)
        kinds[end] = int(Kind.END)
        may = (torch.arange(8)[:, None] & kinds[None]) > 0
        return torch.zeros(8, size).masked_fill(~may, -torch.inf).to(device)
