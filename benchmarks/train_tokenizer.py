"""Training speed of the speech tokenizer against the usual loop, in one run.

    python benchmarks/train_tokenizer.py [--whisper FOLDER] [--recordings 40] [--batch-seconds 30]

Ours: `SpeechTokenizer` on bucketed recordings without padding to 30 s, log-mel in batch, chunked cross-entropy. The usual
loop: transformers' `WhisperForConditionalGeneration` (no bottleneck at all, so less work) with its feature extractor, every
recording padded to 30 s, the same recordings in the same batches. Both train all parameters with AdamW in bf16 autocast. The
recordings are a random draw from the corpus, so that lengths are mixed as they are there; the two sides alternate, A B A B.
Reported are seconds of real speech per second over all batches, the ratio of the two, and its range over single batches.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from datamodules.audio import AudioDataModule
from datamodules.cuts import CutSource, read_cuts, write_cuts
from speechlm.batch import AudioBatch
from speechlm.nn.ema_vq import EmaVQ
from speechlm.provenance import short_commit
from speechlm.stages.speech_tokenizer import SpeechTokenizer
from speechlm.tokens.clock import Clock

Step = Callable[[AudioBatch], torch.Tensor]


def ours(whisper: str, device: str) -> Step:
    """One training step of the stage, without a trainer around it."""
    stage = SpeechTokenizer(Clock(), whisper, lambda dim: EmaVQ(dim, 2048, init="random"), source_form="unpadded").to(
        device
    )
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=1e-5)

    def step(batch: AudioBatch) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            inputs, labels = (x.to(device) for x in stage.model.text.encode(batch.texts))
            scored = stage.model.score(batch.audio.to(device), batch.audio_lens.to(device), inputs)
            loss = stage.model.asr_loss(scored, labels) + scored.quantized.loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        stage.model.encoder.quantizer.update()
        return loss.detach()

    return step


def usual(whisper: str, device: str) -> Step:
    """One training step of transformers' Whisper, recordings padded to 30 s."""
    model = WhisperForConditionalGeneration.from_pretrained(whisper, dtype=torch.float32).train().to(device)
    extractor = WhisperFeatureExtractor.from_pretrained(whisper)
    text = SpeechTokenizer(Clock(), whisper, source_form="unpadded").model.text
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: AudioBatch) -> torch.Tensor:
        rows = [row[:n].numpy() for row, n in zip(batch.audio, batch.audio_lens.tolist(), strict=True)]
        features = extractor(rows, sampling_rate=16_000, return_tensors="pt").input_features.to(device)
        inputs, labels = (x.to(device) for x in text.encode(batch.texts))
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_features=features, decoder_input_ids=inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def seconds_of(step: Step, batch: AudioBatch) -> float:
    """How long a step takes."""
    begin = time.perf_counter()
    float(step(batch))  # waits for the device
    return time.perf_counter() - begin


def drawn_batches(cuts: str, recordings: int, batch_seconds: float) -> list[AudioBatch]:
    """Batches of a random draw of recordings, seed 0."""
    usable = [cut for cut in read_cuts(cuts) if 0.1 <= cut.duration <= 30.0]
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "drawn.jsonl"
        write_cuts(random.Random(0).sample(usable, recordings), manifest)
        data = AudioDataModule(
            Clock(), [CutSource(str(manifest))], batch_seconds=batch_seconds, num_buckets=5, epochs=1
        )
        return list(data.train_dataloader())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--whisper", default="assets/whisper-nano-en")
    parser.add_argument("--cuts", default="assets/asterisk-en/train.jsonl.gz")
    parser.add_argument("--recordings", type=int, default=40)
    parser.add_argument("--batch-seconds", type=float, default=30.0)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = drawn_batches(args.cuts, args.recordings, args.batch_seconds)
    sides = {"ours": ours(args.whisper, device), "usual": usual(args.whisper, device)}
    for step in sides.values():
        step(batches[0])  # warm-up
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for batch in batches:
        for name, step in sides.items():
            taken[name].append(seconds_of(step, batch))
    speech = sum(batch.seconds for batch in batches)
    ratios = [b / a for a, b in zip(taken["ours"], taken["usual"], strict=True)]
    result = {
        "commit": short_commit(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "whisper": args.whisper,
        "recordings": args.recordings,
        "mean_recording_sec": round(speech / args.recordings, 2),
        "padding_share": round(1 - speech / sum(b.seconds / (1 - b.padding_share) for b in batches), 3),
        "x_real_time": {name: round(speech / sum(times), 1) for name, times in taken.items()},
        "ratio": round(sum(taken["usual"]) / sum(taken["ours"]), 2),
        "ratio_of_batches": [round(min(ratios), 2), round(max(ratios), 2)],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
