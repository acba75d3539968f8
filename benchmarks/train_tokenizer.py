"""Training speed of the speech tokenizer against the usual loop, in one run.

    python benchmarks/train_tokenizer.py [--whisper FOLDER] [--steps 6] [--batch-seconds 60]

Ours: `SpeechTokenizer` on bucketed recordings without padding to 30 s, log-mel in batch, chunked cross-entropy. The usual loop:
transformers' `WhisperForConditionalGeneration` (no bottleneck at all, so less work) with its feature extractor, every recording
padded to 30 s, the same recordings in the same batches. Both train all parameters with AdamW in bf16 autocast. The two alternate,
A B A B; reported are medians of seconds of real speech per second, and their ratio.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable

import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from datamodules.audio import AudioDataModule
from datamodules.cuts import CutSource
from speechlm.batch import AudioBatch
from speechlm.nn.ema_vq import EmaVQ
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


def speed(step: Step, batch: AudioBatch) -> float:
    """Seconds of real speech trained on per second."""
    begin = time.perf_counter()
    float(step(batch))  # waits for the device
    return batch.seconds / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--whisper", default="assets/whisper-nano-en")
    parser.add_argument("--cuts", default="assets/asterisk-en/train.jsonl.gz")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = AudioDataModule(
        Clock(), [CutSource(args.cuts)], batch_seconds=args.batch_seconds, epochs=1, max_skip_rate=1.0
    )
    batches = [batch for _, batch in zip(range(args.steps + 1), data.train_dataloader(), strict=False)]
    sides = {"ours": ours(args.whisper, device), "usual": usual(args.whisper, device)}
    for step in sides.values():
        step(batches[0])  # warm-up
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for batch in batches[1:]:
        for name, step in sides.items():
            speeds[name].append(speed(step, batch))
    medians = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["usual"], strict=True)]
    result = {
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "whisper": args.whisper,
        "mean_recording_sec": round(sum(b.seconds for b in batches) / sum(len(b) for b in batches), 2),
        "x_real_time": medians,
        "ratio": {
            "median": round(statistics.median(ratios), 2),
            "min": round(min(ratios), 2),
            "max": round(max(ratios), 2),
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
