"""VQ-Whisper: a Whisper checkpoint whose encoder passes through a quantised bottleneck and whose decoder reads what is left."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from speechlm.nn import glm4voice
from speechlm.nn.log_mel import Floor, LogMel
from speechlm.nn.losses import linear_cross_entropy
from speechlm.nn.masks import length_mask
from speechlm.nn.quantizer import Quantized
from speechlm.nn.streaming_whisper import TokenStream
from speechlm.nn.token_input import require_tokens
from speechlm.nn.whisper_decoder import WhisperTextDecoder
from speechlm.nn.whisper_encoder import POSITIONS_PER_SEC, Bottleneck, QuantizerFactory, WhisperVQEncoder
from speechlm.nn.whisper_text import WhisperText
from speechlm.nn.whisper_tokens import tokenize
from speechlm.tokens.clock import Clock

TEXT_TOKENS_PER_SEC = 10.0  # no speech is that fast: bounds a transcript that loops


class Scored(NamedTuple):
    """Teacher-forced transcripts."""

    outputs: Tensor  # (B, L, D) of the decoder, before the projection to the vocabulary
    states: Tensor  # (B, T, D) of the encoder
    state_lens: Tensor  # (B,)
    quantized: Quantized | None
    vectors: Tensor  # (B, T, D) before the quantiser


class WhisperVQ(nn.Module):
    """Audio to speech tokens, and through them to text.

    Args:
        whisper: name or folder of a Hugging Face Whisper checkpoint, tiny to large-v3, or a folder in the form of the released
            GLM-4-Voice tokenizer, which goes on with its own codebook.
        clock: its token rate decides how many encoder positions are pooled.
        bottleneck: where the encoder is narrowed, and how it attends.
        quantizer: makes the quantiser for a width; None trains or runs without one.
        floor: see `LogMel`.
        bare_prompt: transcripts open with the start id only, as in the released tokenizer.
    """

    def __init__(
        self,
        whisper: str,
        clock: Clock,
        bottleneck: Bottleneck | None = None,
        quantizer: QuantizerFactory | None = None,
        floor: Floor = "clip",
        bare_prompt: bool = False,
    ) -> None:
        super().__init__()
        pooling = clock.pooling(POSITIONS_PER_SEC)
        config = WhisperConfig.from_pretrained(whisper)
        if glm4voice.is_released(whisper):
            parts = glm4voice.load_parts(whisper, pooling, bottleneck or Bottleneck(), quantizer)
            self.encoder, self.decoder = parts
        else:
            model = WhisperForConditionalGeneration.from_pretrained(whisper, dtype=torch.float32).model
            self.encoder = WhisperVQEncoder(model.encoder, pooling, bottleneck, quantizer)
            self.decoder = WhisperTextDecoder(model.decoder)
        self.clock = clock
        self.log_mel = LogMel(config.num_mel_bins, clock.samples_per_token, floor)
        self.text = WhisperText.from_pretrained(whisper, config, bare_prompt)
        self.max_samples = clock.samples_of_tokens(self.encoder.max_tokens)

    def score(self, audio: Tensor, audio_lens: Tensor, text_inputs: Tensor, quantize: bool = True) -> Scored:
        """(B, N) waveform, (B,) samples, (B, L) decoder inputs -> what the decoder makes of them."""
        encoded = self.encoder(*self.log_mel(audio, audio_lens), quantize=quantize)
        outputs = self.decoder(text_inputs, encoded.states, encoded.state_lens)
        return Scored(outputs, encoded.states, encoded.state_lens, encoded.quantized, encoded.vectors)

    def asr_loss(self, scored: Scored, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the transcripts' ids, (B, L) labels."""
        return linear_cross_entropy(scored.outputs, self.decoder.embed_tokens.weight, labels)

    def tokenize(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) waveforms of any length, (B,) samples -> (B, T) codes, -1 behind each end, and (B,) tokens.

        Recordings longer than Whisper sees (30 s) are cut into pieces of that length that know nothing of each other.
        """
        return tokenize(self.log_mel, self.encoder, self.max_samples, audio, audio_lens)

    def stream(self, approximate_floor: bool = False) -> TokenStream:
        """Tokens of a recording that is still arriving, see `TokenStream`."""
        return TokenStream(self.log_mel, self.encoder, approximate_floor)

    @torch.no_grad()
    def transcribe(
        self, audio: Tensor, audio_lens: Tensor, languages: Sequence[str] = (), quantize: bool = True
    ) -> list[str]:
        """Greedy transcripts of recordings up to 30 s; `quantize=False` lets the pooled vectors pass the quantiser."""
        encoded = self.encoder(*self.log_mel(audio, audio_lens), quantize=quantize)
        return self._greedy(encoded.states, encoded.state_lens, languages)

    @torch.no_grad()
    def read(self, codes: Tensor, lens: Tensor, languages: Sequence[str] = ()) -> list[str]:
        """Greedy transcripts of (B, T) speech tokens and (B,) lengths, up to 30 s, whoever made them; no waveform is needed.

        Raises:
            ValueError: there is no quantiser, a row is empty or longer than the encoder sees, or an id is not in the codebook.
        """
        quantizer = self.encoder.quantizer
        if quantizer is None:
            raise ValueError("without a quantiser there are no speech tokens to read")
        require_tokens(codes, lens, quantizer.num_codes, max_tokens=self.encoder.max_tokens)
        real = length_mask(lens, codes.shape[1])
        vectors = quantizer.decode(codes * real) * real[..., None]
        return self._greedy(self.encoder.above(vectors, lens), lens, languages)

    def _greedy(self, states: Tensor, state_lens: Tensor, languages: Sequence[str]) -> list[str]:
        prompts = [tuple(self.text.prompt(language)) for language in languages or [""] * len(state_lens)]
        texts = [""] * len(prompts)
        for prompt in sorted(set(prompts)):
            rows = [i for i, own in enumerate(prompts) if own == prompt]
            ids = self.decoder.greedy(
                states[rows],
                state_lens[rows],
                list(prompt),
                self.text.eos,
                self.text.suppress,
                tokens_per_state=TEXT_TOKENS_PER_SEC / self.clock.token_rate_hz,
            )
            for row, own in zip(rows, ids, strict=True):
                texts[row] = self.text.decode(own)
        return texts
