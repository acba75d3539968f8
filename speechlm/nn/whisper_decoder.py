"""Whisper's decoder over encoder states of different lengths: teacher-forced outputs, and greedy text."""

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from speechlm.nn.masks import attention_mask, block_causal_mask, length_mask


class WhisperTextDecoder(nn.Module):
    """transformers' decoder layers with the one thing its own forward lacks: a mask over padded encoder states.

    Args:
        decoder: transformers' decoder; its parts are taken over. The output projection is its embedding, as in Whisper.
    """

    def __init__(self, decoder: WhisperDecoder) -> None:
        super().__init__()
        self.embed_tokens, self.embed_positions = decoder.embed_tokens, decoder.embed_positions
        self.layers, self.layer_norm = decoder.layers, decoder.layer_norm
        self.max_len = decoder.max_target_positions

    def forward(
        self, text_tokens: Tensor, states: Tensor, state_lens: Tensor, cache: EncoderDecoderCache | None = None
    ) -> Tensor:
        """(B, L) text ids and (B, T, D) states -> (B, L, D) outputs; `logits` of them predict the ids that follow."""
        past = cache.get_seq_length() if cache is not None else 0
        positions = torch.arange(past, past + text_tokens.shape[1], device=text_tokens.device)
        x = self.embed_tokens(text_tokens) + self.embed_positions.weight[positions]
        causal = block_causal_mask(past + text_tokens.shape[1], 1, x.device)[past:]
        own = attention_mask(causal, causal.new_ones(len(x), causal.shape[1]), x.dtype)
        cross = attention_mask(causal.new_ones(1, states.shape[1]), length_mask(state_lens, states.shape[1]), x.dtype)
        cross = cross.expand(-1, -1, x.shape[1], -1)
        for layer in self.layers:
            x = layer(x, own, states, cross, past_key_values=cache)
        return self.layer_norm(x)

    def logits(self, outputs: Tensor) -> Tensor:
        """(…, D) outputs -> (…, vocabulary)."""
        return nn.functional.linear(outputs, self.embed_tokens.weight)

    @torch.no_grad()
    def greedy(
        self,
        states: Tensor,
        state_lens: Tensor,
        prompt: list[int],
        eos: int,
        suppress: list[int] | None = None,
        max_new_tokens: int = 200,
        tokens_per_state: float | None = None,
    ) -> list[list[int]]:
        """The most likely text, token by token.

        Args:
            states: (B, T, D).
            state_lens: (B,).
            prompt: ids that open every transcript (start of transcript, language, task …).
            eos: id that ends a transcript.
            suppress: ids never to be emitted.
            max_new_tokens: bound for every transcript.
            tokens_per_state: a further bound by length of audio, against loops on bad input.

        Returns:
            B lists of ids, without prompt and eos.
        """
        budget = min(max_new_tokens, self.max_len - len(prompt))
        if tokens_per_state is not None:
            budget = min(budget, 8 + int(tokens_per_state * int(state_lens.max())))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        step = torch.tensor(prompt, device=states.device).repeat(len(states), 1)
        running = torch.ones(len(states), dtype=torch.bool, device=states.device)
        taken: list[Tensor] = []
        for _ in range(budget):
            logits = self.logits(self(step, states, state_lens, cache)[:, -1]).float()
            if suppress:
                logits[:, suppress] = -torch.inf
            chosen = torch.where(running, logits.argmax(dim=-1), eos)
            taken.append(chosen)
            running &= chosen != eos
            step = chosen[:, None]
            if not bool(running.any()):
                break
        rows = torch.stack(taken, dim=1).tolist() if taken else [[] for _ in range(len(states))]
        return [row[: row.index(eos)] if eos in row else row for row in rows]
