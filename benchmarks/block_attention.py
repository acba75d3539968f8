"""Attention by blocks against one call under the dense mask, in one run: the attention alone, and a whole encoder around it.

    python benchmarks/block_attention.py [--whisper FOLDER] [--positions 500 1000 1500] [--batch 4] [--rounds 7] [--device cpu]

The two forms alternate, A B A B; times are the best of the rounds, making of masks included. On a CPU they are the processor's,
for shared machines (OMP_NUM_THREADS=1). "encoder" runs `WhisperVQEncoder.below`, all layers under the quantiser, without
gradients as for tokens and with them as in training.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from speechlm.nn.block_attention import AttentionForm, visible
from speechlm.nn.whisper_encoder import Bottleneck, WhisperVQEncoder
from speechlm.provenance import short_commit

FORMS: tuple[AttentionForm, AttentionForm] = ("dense", "blocks")
BLOCK = 200


def best_ms(work: Callable[[AttentionForm], object], rounds: int, device: str) -> dict[str, float]:
    """The best round of each form, in ms, and dense over blocks."""
    best = dict.fromkeys(FORMS, float("inf"))
    clock = time.perf_counter if device == "cuda" else time.process_time
    for number in range(rounds + 1):
        for form in FORMS:
            start = clock()
            work(form)
            if device == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                best[form] = min(best[form], 1e3 * (clock() - start))
    shown: dict[str, float] = {form: round(ms, 2) for form, ms in best.items()}
    return shown | {"ratio": round(best["dense"] / best["blocks"], 2)}


def attention(size: int, batch: int, heads: int, device: str, train: bool) -> Callable[[AttentionForm], object]:
    """One layer's attention, its mask made for it alone."""
    q, k, v = (torch.randn(batch, heads, size, 64, device=device, requires_grad=train) for _ in range(3))
    lens = lengths(size, batch, device)

    def work(form: AttentionForm) -> object:
        with torch.set_grad_enabled(train):
            out = visible(lens, size, BLOCK, q.dtype, form).attend(q / 8, k, v)
            return torch.autograd.grad(out.sum(), (q, k, v)) if train else out

    return work


def encoder(encoder: WhisperVQEncoder, size: int, batch: int, train: bool) -> Callable[[AttentionForm], object]:
    """Mel to pooled vectors."""
    device = encoder.embed_positions.weight.device
    mel = torch.randn(batch, encoder.conv1.in_channels, 2 * size, device=device)
    lens = 2 * lengths(size, batch, str(device))
    parameters = [p for p in [*encoder.conv1.parameters(), *encoder.layers.parameters()] if p.requires_grad]

    def work(form: AttentionForm) -> object:
        encoder.attention = form
        with torch.set_grad_enabled(train):
            x: Tensor = encoder.below(mel, lens)[0]
            return torch.autograd.grad(x.sum(), parameters, allow_unused=True) if train else x

    return work


def lengths(size: int, batch: int, device: str) -> Tensor:
    """(B,) recordings a little shorter than the longest, as length buckets have them."""
    return size - 8 * torch.arange(batch, device=device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--whisper", default="assets/whisper-nano-en")
    parser.add_argument("--positions", type=int, nargs="+", default=[500, 1000, 1500])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    whisper = WhisperForConditionalGeneration.from_pretrained(args.whisper, dtype=torch.float32)
    heads = whisper.config.encoder_attention_heads
    model = WhisperVQEncoder(whisper.model.encoder, 4, Bottleneck()).to(args.device).eval()
    rows = {}
    for size in args.positions:
        for name, train in (("forward", False), ("forward and backward", True)):
            one = best_ms(attention(size, args.batch, heads, args.device, train), args.rounds, args.device)
            whole = best_ms(encoder(model, size, args.batch, train), args.rounds, args.device)
            rows[f"{size} positions, {name}"] = {"attention": one, "encoder": whole}
    result = {
        "commit": short_commit(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "whisper": args.whisper,
        "heads": heads,
        "layers": model.after_layer,
        "batch": args.batch,
        "block": BLOCK,
        "ms": rows,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
