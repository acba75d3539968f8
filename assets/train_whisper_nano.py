"""Trains the small Whisper of `build_whisper_nano.py` from random weights to a usable recogniser, on one CPU core.

    python assets/train_whisper_nano.py START OUT --train CUTS WEIGHT --train CUTS WEIGHT --heldout CUTS --hours 90

CUTS are Lhotse cut manifests (16 kHz, paths absolute or relative to the manifest), WEIGHT is a set's share of the batches.
`--hours` is the audio to train on, repeats included; 0 only scores START. `--minutes` ends the schedule early by the clock.

The encoder is trained as the speech tokenizer uses it: unpadded lengths, causal convolutions, block-causal attention over
4 s. What makes a cold start work in an hour: CTC over letters at the middle and the top of the encoder (dropped at export),
Muon for the matrices, bf16 products, batches without padding, and augmentation done on the log-mel, where it is cheap.
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jiwer
import soundfile
import torch
import torch.nn.functional as F
from build_whisper_nano import PROMPT, save
from lhotse import MonoCut, load_manifest_lazy
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, WhisperForConditionalGeneration
from whisper_normalizer.english import EnglishTextNormalizer

from speechlm.nn.log_mel import LogMel
from speechlm.nn.masks import attention_mask, block_causal_mask, length_mask

SAMPLE_RATE_HZ = 16_000
MEL_RATE_HZ = 100
BLOCK = 200  # encoder positions, 4 s
MAX_SEC = 24.0  # longer cuts are left out of training
POOL = 1000  # cuts that are sorted by length together
LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
IGNORE = -100
EASY_START = 0.1  # share of the schedule without augmentation, until CTC has found its alignments


@dataclass
class Item:
    """One recording: (M, F) log-mel in half precision and its transcript."""

    mel: Tensor
    text: str

    @property
    def seconds(self) -> float:
        return self.mel.shape[1] / MEL_RATE_HZ


class Corpus:
    """The cuts of one manifest as log-mel items, decoded once and kept.

    Args:
        path: Lhotse cut manifest; paths in it are absolute or relative to its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_mel = LogMel(80)
        self.kept: dict[str, Item] = {}

    def cuts(self) -> list[MonoCut]:
        """Read anew each time: a corpus may still be growing."""
        return [cut for cut in load_manifest_lazy(self.path) if cut.duration <= 30.0]

    def load(self, cut: MonoCut) -> Item:
        """Decodes a cut, or takes it from memory."""
        if cut.id not in self.kept:
            path = self.path.parent / cut.recording.sources[0].source
            first = round(cut.start * SAMPLE_RATE_HZ)
            audio, rate = soundfile.read(
                path, frames=round(cut.duration * SAMPLE_RATE_HZ), start=first, dtype="float32"
            )
            if rate != SAMPLE_RATE_HZ or audio.ndim != 1:
                raise ValueError(
                    f"{path}: expected mono audio at {SAMPLE_RATE_HZ} Hz, got {rate} Hz, shape {audio.shape}"
                )
            mel, _ = self.log_mel(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
            self.kept[cut.id] = Item(mel[0].half(), cut.supervisions[0].text)
        return self.kept[cut.id]

    def batches(self, batch_sec: float, rng: random.Random) -> Iterator[list[Item]]:
        """For ever: batches of cuts of like length, `batch_sec` of padded audio each."""
        while True:
            cuts = [cut for cut in self.cuts() if cut.duration <= MAX_SEC]
            rng.shuffle(cuts)
            for start in range(0, len(cuts), POOL):
                pool = sorted(cuts[start : start + POOL], key=lambda cut: cut.duration)
                batches = group_by_seconds(pool, batch_sec)
                rng.shuffle(batches)
                yield from ([self.load(cut) for cut in batch] for batch in batches)


def group_by_seconds(cuts: list[MonoCut], batch_sec: float) -> list[list[MonoCut]]:
    """Cuts sorted by length -> consecutive groups of at most `batch_sec`, padding counted."""
    groups: list[list[MonoCut]] = [[]]
    for cut in cuts:
        if groups[-1] and (len(groups[-1]) + 1) * cut.duration > batch_sec:
            groups.append([])
        groups[-1].append(cut)
    return groups


def stack(items: list[Item]) -> tuple[Tensor, Tensor]:
    """Items -> (B, M, F) log-mel, zeros behind each end, and (B,) frames."""
    lens = torch.tensor([item.mel.shape[1] for item in items])
    mel = torch.zeros(len(items), items[0].mel.shape[0], int(lens.max()))
    for row, item in zip(mel, items, strict=True):
        row[:, : item.mel.shape[1]] = item.mel
    return mel, lens


def warp(mel: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    """Another tempo (±8 %) and another vocal tract (±4 % along the mel axis) for every item."""
    batch, bins, frames = mel.shape
    tempo = torch.empty(batch, 1).uniform_(0.92, 1.08)
    tract = torch.empty(batch, 1).uniform_(0.96, 1.04)
    lens = (lens / tempo[:, 0]).long()
    x = torch.arange(int(lens.max()))[None] * tempo / (frames - 1) * 2 - 1  # (B, F')
    y = torch.arange(bins)[None] * tract / (bins - 1) * 2 - 1  # (B, M)
    grid = torch.stack([x[:, None].expand(-1, bins, -1), y[:, :, None].expand(-1, -1, x.shape[1])], dim=-1)
    warped = F.grid_sample(mel[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
    return warped * length_mask(lens, x.shape[1])[:, None], lens


def add_noise(mel: Tensor) -> Tensor:
    """Stationary noise of a random tilt, 35 to 60 dB under the loudest frame, on a third of the items; (mel * 4 - 4) is log10."""
    batch, bins, _ = mel.shape
    slope = torch.linspace(-1, 1, bins)[None, :, None] * torch.empty(batch, 1, 1).uniform_(-1.5, 0.5)
    level = mel.amax(dim=(1, 2), keepdim=True) * 4 - torch.empty(batch, 1, 1).uniform_(3.5, 6.0) + slope
    noise = level + 0.25 * torch.randn_like(mel)
    noisy = torch.logaddexp(mel * 4 * 2.302585, noise * 2.302585) / 2.302585 / 4
    return torch.where(torch.rand(batch, 1, 1) < 0.33, noisy, mel)


def mask_parts(mel: Tensor, lens: Tensor) -> Tensor:
    """SpecAugment (arXiv 1904.08779): a band of up to 10 bins, and up to 0.12 s in every 4 s, set to zero."""
    batch, bins, frames = mel.shape
    low = torch.rand(batch, 1) * bins
    band = torch.arange(bins)[None]
    mel = mel.masked_fill(((band >= low) & (band < low + torch.rand(batch, 1) * 10))[:, :, None], 0.0)
    time_axis = torch.arange(frames)[None]
    for _ in range(1 + frames // 400):
        start = torch.rand(batch, 1) * lens[:, None]
        hidden = (time_axis >= start) & (time_axis < start + torch.rand(batch, 1) * 12)
        mel = mel.masked_fill(hidden[:, None], 0.0)
    return mel


class Recogniser(nn.Module):
    """The Whisper with two CTC heads beside it.

    Args:
        whisper: the model that is trained; it alone is saved.
        tokenizer: its tokenizer.
        decoder_weight: of the decoder's loss, beside 0.5 for CTC at the top and 0.25 in the middle.
    """

    def __init__(
        self, whisper: WhisperForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, decoder_weight: float = 0.5
    ) -> None:
        super().__init__()
        self.decoder_weight = decoder_weight
        self.whisper = whisper
        self.tokenizer = tokenizer
        width = whisper.config.d_model
        self.ctc_heads = nn.ModuleList([nn.Linear(width, len(LETTERS) + 1) for _ in range(2)])
        self.prompts = [tokenizer.convert_tokens_to_ids(names) for names in (PROMPT, [PROMPT[0], PROMPT[-1]])]

    def encode(self, mel: Tensor, mel_lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, M, F) -> states (B, T, D), positions (B,), and the states in the middle of the encoder (B, T, D)."""
        encoder = self.whisper.model.encoder
        x = F.gelu(encoder.conv1(F.pad(mel, (2, 0))))
        x = F.gelu(encoder.conv2(F.pad(x, (2, 0)))).transpose(1, 2)
        lens = (mel_lens + 1) // 2
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        mask = attention_mask(block_causal_mask(x.shape[1], BLOCK), length_mask(lens, x.shape[1]), dtype)
        for index, layer in enumerate(encoder.layers):
            x = layer(x, mask)
            if index + 1 == len(encoder.layers) // 2:
                middle = x
        return encoder.layer_norm(x), lens, middle

    def decode(self, text_tokens: Tensor, states: Tensor, state_lens: Tensor) -> Tensor:
        """(B, L) ids behind the prompt and (B, T, D) encoder states -> (B, L, V) logits."""
        decoder = self.whisper.model.decoder
        length = text_tokens.shape[1]
        x = decoder.embed_tokens(text_tokens) + decoder.embed_positions.weight[:length]
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        everywhere = torch.ones_like(text_tokens, dtype=torch.bool)
        causal = attention_mask(block_causal_mask(length, 1), everywhere, dtype)
        heard = attention_mask(
            torch.ones(1, states.shape[1], dtype=torch.bool), length_mask(state_lens, states.shape[1]), dtype
        )
        heard = heard.expand(-1, -1, length, -1)
        for layer in decoder.layers:
            x = layer(x, causal, encoder_hidden_states=states, encoder_attention_mask=heard, use_cache=False)
        return self.whisper.proj_out(decoder.layer_norm(x))

    def targets(self, texts: list[str], prompt: list[int]) -> tuple[Tensor, Tensor]:
        """Transcripts -> decoder input (B, L) and labels (B, L); only text and its end are learnt."""
        end = self.tokenizer.eos_token_id
        rows = [[*prompt, *ids, end] for ids in self.tokenizer(texts, add_special_tokens=False).input_ids]
        ids = torch.full((len(rows), max(map(len, rows))), IGNORE)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = torch.tensor(values)
        labels = ids[:, 1:].clone()
        labels[:, : len(prompt) - 1] = IGNORE
        return ids[:, :-1].masked_fill(ids[:, :-1] == IGNORE, end), labels

    def ctc_loss(self, head: nn.Module, states: Tensor, lens: Tensor, texts: list[str]) -> Tensor:
        """CTC over letters of the normalised transcripts."""
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        letters = [[LETTERS.index(c) + 1 for c in normalizer.normalize_str(text)] for text in texts]
        target = torch.tensor([index for row in letters for index in row])
        log_probs = head(states).float().log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_probs, target, lens, torch.tensor([len(row) for row in letters]), zero_infinity=True)

    def forward(self, mel: Tensor, mel_lens: Tensor, texts: list[str]) -> dict[str, Tensor]:
        """The loss to minimise and its parts."""
        states, lens, middle = self.encode(mel, mel_lens)
        tokens, labels = self.targets(texts, random.choice(self.prompts))
        logits = self.decode(tokens, states, lens).float()
        asr = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, label_smoothing=0.1)
        top = self.ctc_loss(self.ctc_heads[1], states, lens, texts)
        mid = self.ctc_loss(self.ctc_heads[0], middle, lens, texts)
        return {"loss": self.decoder_weight * asr + 0.5 * top + 0.25 * mid, "asr": asr, "ctc": top, "ctc_mid": mid}

    @torch.no_grad()
    def transcribe(self, mel: Tensor, mel_lens: Tensor) -> list[str]:
        """Greedy search."""
        states, lens, _ = self.encode(mel, mel_lens)
        tokens = torch.tensor([self.prompts[0]] * len(mel))
        done = torch.zeros(len(mel), dtype=torch.bool)
        for _ in range(16 + int(mel_lens.max()) // 10):
            following = (
                self.decode(tokens, states, lens)[:, -1].argmax(-1).masked_fill(done, self.tokenizer.eos_token_id)
            )
            tokens = torch.cat([tokens, following[:, None]], dim=1)
            done |= following == self.tokenizer.eos_token_id
            if bool(done.all()):
                break
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def score(model: Recogniser, corpus: Corpus) -> dict[str, float]:
    """Word error rate (%) over a corpus, both sides through Whisper's English normaliser."""
    normalise = EnglishTextNormalizer()
    references, hypotheses = [], []
    for cuts in group_by_seconds(sorted(corpus.cuts(), key=lambda cut: cut.duration), 120.0):
        items = [corpus.load(cut) for cut in cuts]
        references += [normalise(item.text) for item in items]
        hypotheses += [normalise(text) for text in model.transcribe(*stack(items))]
    return {"wer": 100 * jiwer.wer(references, hypotheses), "words": sum(len(r.split()) for r in references)}


def build_optimizers(model: Recogniser, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest; Muon's steps are scaled to AdamW's size."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def train(model: Recogniser, sources: list[tuple[Corpus, float]], args: argparse.Namespace) -> None:
    """Trains until `args.hours` of audio were seen or `args.minutes` are over; warm-up, then linear decay to zero."""
    rng = random.Random(args.seed)
    streams = [corpus.batches(args.batch_sec, rng) for corpus, _ in sources]
    optimizers = build_optimizers(model, args.lr)
    began = reported = time.monotonic()
    seen_sec, step, progress = 0.0, 0, 0.0
    while progress < 1.0:
        scale = min(1.0, progress / 0.04 + 0.01) * (1.0 - progress)
        items = next(rng.choices(streams, [weight for _, weight in sources])[0])
        mel, lens = stack(items)
        if args.resume or progress > EASY_START:
            mel, lens = warp(mel, lens)
            mel = mask_parts(add_noise(mel), lens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(mel, lens, [item.text for item in items])
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * scale
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        seen_sec += sum(item.seconds for item in items)
        minutes = (time.monotonic() - began) / 60
        progress = max(seen_sec / 3600 / args.hours, minutes / args.minutes)
        if time.monotonic() - reported > args.report_sec or progress >= 1.0:
            reported = time.monotonic()
            parts = "  ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(
                f"{minutes:5.1f} min  step {step}  {seen_sec / 3600:.2f} h  {seen_sec / 60 / minutes:.0f}x  {parts}",
                flush=True,
            )
            torch.save(model.state_dict(), args.out.with_suffix(".pt"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", type=Path, help="Whisper folder to start from")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--train", nargs=2, action="append", default=[], metavar=("CUTS", "WEIGHT"))
    parser.add_argument("--heldout", type=Path, action="append", default=[], metavar="CUTS")
    parser.add_argument("--hours", type=float, default=55.0)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--batch_sec", type=float, default=45.0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decoder_weight", type=float, default=0.5, help="more once CTC has found its alignments")
    parser.add_argument("--resume", type=Path, help="OUT.pt of an earlier run: weights, CTC heads included")
    parser.add_argument("--report_sec", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    # Plain attention: on a CPU and at these lengths a training step takes a fifth less time than with the fused kernel.
    whisper = WhisperForConditionalGeneration.from_pretrained(
        args.start, dtype=torch.float32, attn_implementation="eager"
    )
    model = Recogniser(whisper, AutoTokenizer.from_pretrained(args.start), args.decoder_weight)
    if args.resume:
        model.load_state_dict(torch.load(args.resume))
    if args.hours > 0:
        train(model.train(), [(Corpus(Path(path)), float(weight)) for path, weight in args.train], args)
        save(args.out, whisper, model.tokenizer)
        whisper.float()
    for path in args.heldout:
        print(path, score(model.eval(), Corpus(path)), flush=True)


if __name__ == "__main__":
    main()
