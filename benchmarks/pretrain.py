"""The language model's training against Hugging Face's Trainer and a hand-written loop: same weights, same documents, one run.

    python benchmarks/pretrain.py [--width 128 --layers 4 --vocab 8192 --row_len 512 --rows 4] [--steps 6] [--rounds 3]
                                  [--device cuda --precision bf16] [--only lightning,plain,…] [--json FILE]

- `lightning`: `speechlm.fit`'s own stack: `SpeechLM`, rows from disk, clipping, schedule, fused AdamW, logs, `Throughput`.
- `plain`: a loop of twenty lines around the same network and rows, that clips and logs nothing else.
- `dense`: the same loop with a dense mask of S x S for torch's attention, as a packed batch usually has it.
- `hf grouped`: transformers' Trainer and model, padded batches grouped by length, fused AdamW, SDPA, as many positions a batch.
- `hf padded`: the same in random order, which is its default.

Documents are log-normal in length (mean `--mean`, sigma 0.8), cut at a row. Useful tokens are ids that are not padding. On a CPU
contestants take turns step by step, in threads of which one runs at a time, and processor time counts: a machine's speed changes
by a quarter from minute to minute, which is as large as what is to be measured. What memory each takes is found before, alone;
then the C library keeps what it has, and two rounds are not counted (page faults were up to a tenth of a step). On a GPU, which
may not hold them all, they take turns round by round, by the clock. Speeds and ratios are medians over rounds. Needs `accelerate`
for the Trainer.
"""

import argparse
import copy
import gc
import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from callbacks.jsonl import JsonlLogger
from callbacks.throughput import Throughput
from datamodules.mixture import RowSource
from datamodules.rows import RowsDataModule
from speechlm.nn.document_attention import Attention
from speechlm.nn.packed_lm import PackedLM
from speechlm.nn.recompute import Recompute
from speechlm.nn.speed import Speed
from speechlm.stages.optim import AdamWSettings
from speechlm.stages.speech_lm import SpeechLM
from speechlm.tokens.clock import Clock
from speechlm.tokens.filling import RowFiller
from speechlm.tokens.rows import index_of, row_writer, write_index
from speechlm.tokens.templates import Written
from speechlm.tokens.vocab import Vocab

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.contest import SETTLE, WARM, Clocks, Relay, keep_memory, rotated

NAMES = ("lightning", "plain", "dense", "hf grouped", "hf padded")
SETTINGS = AdamWSettings(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, eps=1e-8, decay="constant", fused=True)


class Bench:
    """Documents, weights, and the contestants.

    Args:
        args: of the command line.
        folder: for rows and logs.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.device = args, folder, torch.device(args.device)
        self.vocab = Vocab(num_text=args.vocab - 256, num_speech=128)
        self.shape = shape_of(args)
        self.shape.save_pretrained(folder / "lm")
        self.steps = args.steps + WARM
        needed = self.steps * args.rows * args.row_len * 2
        rng = np.random.default_rng(0)
        lengths = rng.lognormal(np.log(args.mean) - 0.32, 0.8, 3 * needed // args.mean).astype(np.int64)
        lengths = np.clip(lengths, 8, args.row_len)
        lengths = lengths[: int(np.searchsorted(lengths.cumsum(), needed)) + 1]
        self.documents = [rng.integers(0, len(self.vocab), n) for n in lengths]
        self._write_rows()

    def _write_rows(self) -> None:
        rows = self.folder / "rows"
        rows.mkdir()
        with row_writer(
            rows / "0.rows", self.args.row_len, self.vocab.hash, len(self.vocab), {"source": "a"}
        ) as writer:
            filler = RowFiller(writer, self.vocab, 2**22)
            for document in self.documents:
                filler.add(Written(document, 0))
            filler.finish()
        write_index(rows, index_of([rows / "0.rows"]))

    def data(self) -> RowsDataModule:
        """Packed rows, without an end."""
        return RowsDataModule(Clock(), [RowSource(str(self.folder / "rows"), weight=1.0)], batch_rows=self.args.rows)

    def stage(self, attention: Attention = "auto", lm: str = "lm") -> SpeechLM:
        """The weights are those of everybody."""
        return SpeechLM(
            Clock(), self.vocab, str(self.folder / lm), from_scratch=True, attention=attention, optimizer=SETTINGS,
            activation_checkpointing=self.args.recompute, loss_chunk=self.args.loss_chunk or None,
            speed=Speed(compile=self.args.compile),
        )  # fmt: skip

    def lightning(self, clocks: Clocks) -> None:
        """The whole stack."""

        class Watch(L.Callback):
            def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
                clocks.step(batch.num_tokens)

        trainer = L.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if self.args.precision == "bf16" else "32-true",
            max_steps=self.steps,
            gradient_clip_val=1.0,
            logger=JsonlLogger(str(self.folder / "run")),
            callbacks=[Watch(), Throughput(every=10)],
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(self.stage(), datamodule=self.data())

    def plain(self, clocks: Clocks, attention: Attention = "auto") -> None:
        """A loop as one would write it."""
        stage = self.stage(attention).to(self.device)
        network: PackedLM = stage.model
        if self.args.compile:
            for layer in stage.lm.base_model.layers:
                layer.compile()
        optimizer, _ = SETTINGS.build(stage, self.steps)
        for _, rows in zip(range(self.steps), self.data().train_dataloader(), strict=False):
            batch = rows if rows.predicted is not None else rows.looked_up()
            tokens = batch.num_tokens
            inputs = [x.to(self.device, non_blocking=True) for x in (batch.ids, batch.loss_mask, batch.doc_ids)]
            with self.autocast():
                loss = network(
                    *inputs, batch.position_ids.to(self.device), cast(Tensor, batch.predicted).to(self.device)
                ).losses.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clocks.step(tokens)

    def dense(self, clocks: Clocks) -> None:
        """The loop with a mask of S x S."""
        self.plain(clocks, "sdpa")

    def trainer(self, clocks: Clocks, grouped: bool) -> None:
        """Transformers' own, with documents padded to the longest of a batch."""
        model = AutoModelForCausalLM.from_config(self.shape, dtype=torch.float32, attn_implementation="sdpa")
        model.load_state_dict(self.stage().lm.state_dict())
        examples = [{"input_ids": torch.from_numpy(d), "length": len(d)} for d in self.documents]
        each = max(1, self.args.rows * self.args.row_len // int(np.mean([len(d) for d in self.documents])))
        sizes: list[int] = []

        def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
            ids = torch.nn.utils.rnn.pad_sequence([one["input_ids"] for one in batch], True, -100)
            sizes.append(int((ids >= 0).sum()))
            return {"input_ids": ids.clamp(min=0), "labels": ids, "attention_mask": (ids >= 0).long()}

        class Watch(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                clocks.step(sizes[len(clocks.seconds) + (clocks.at is not None)])

        settings = TrainingArguments(
            output_dir=str(self.folder / "hf"),
            max_steps=self.steps,
            per_device_train_batch_size=each,
            bf16=self.args.precision == "bf16",
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            learning_rate=1e-4,
            weight_decay=0.1,
            lr_scheduler_type="constant",
            train_sampling_strategy="group_by_length" if grouped else "random",
            length_column_name="length",
            report_to=[],
            save_strategy="no",
            logging_steps=10,
            disable_tqdm=True,
            use_cpu=self.device.type == "cpu",
            remove_unused_columns=False,
            torch_compile=self.args.compile,
            dataloader_pin_memory=self.device.type == "cuda",
        )
        Trainer(model, settings, train_dataset=examples, data_collator=collate, callbacks=[Watch()]).train()

    def autocast(self) -> Any:
        """Of the loop."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.precision == "bf16")

    def turns(self) -> dict[str, Callable[[Clocks], None]]:
        """Contestants by name."""
        return {
            "lightning": self.lightning,
            "plain": self.plain,
            "dense": self.dense,
            "hf grouped": lambda clocks: self.trainer(clocks, grouped=True),
            "hf padded": lambda clocks: self.trainer(clocks, grouped=False),
        }

    @torch.no_grad()
    def leakage(self) -> float:
        """Largest change of any logit of other documents when the first one is changed; 0 is none at all."""
        shape = copy.deepcopy(self.shape)
        shape.num_hidden_layers, shape.layer_types = (
            min(2, self.args.layers),
            ["full_attention"] * min(2, self.args.layers),
        )
        shape.save_pretrained(self.folder / "shallow")
        stage = self.stage(lm="shallow").to(self.device).eval()
        batch = next(iter(self.data().train_dataloader()))
        ids, docs, places = (x.to(self.device) for x in (batch.ids, batch.doc_ids, batch.position_ids))
        with self.autocast():
            before = stage.model.logits(ids, docs, places)
            mine = torch.zeros_like(docs, dtype=torch.bool)
            mine[0] = docs[0] == docs[0, 0]
            after = stage.model.logits(torch.where(mine, (ids + 1) % len(self.vocab), ids), docs, places)
        assert not torch.equal(before[mine], after[mine])
        others = (before - after).abs()[~mine]
        return float(others.max()) if others.numel() else 0.0


def shape_of(args: argparse.Namespace) -> PreTrainedConfig:
    """Of the model."""
    return Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.width,
        intermediate_size=args.inner or 11 * args.width // 4 // 16 * 16,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads or max(1, args.width // 64),
        num_key_value_heads=args.kv_heads or max(1, args.width // 128),
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=0,
    )


def peak(device: torch.device) -> Iterator[float]:
    """First a reset; then GiB since."""
    if device.type == "cuda":
        torch.cuda.init()  # nothing may have used it yet, and then there are no statistics to reset
        torch.cuda.reset_peak_memory_stats()
        yield 0.0
        yield torch.cuda.max_memory_allocated() / 2**30
        return
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    yield 0.0
    yield _resident("VmHWM") - before


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every contestant, round after round."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, isolate_rng():
        bench = Bench(args, Path(folder))
        turns = {name: turn for name, turn in bench.turns().items() if name in args.only.split(",")}
        speeds, memory = (_step_by_step if bench.device.type == "cpu" else _round_by_round)(bench, turns, args.rounds)
        results = {name: _spread(of) | {"peak_gib": round(memory[name], 3)} for name, of in speeds.items()}
        pairs = [("lightning", name) for name in turns if name != "lightning"] + [("plain", "dense")]
        ratios = {f"{ours} to {theirs}": _spread([a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True)], 3)
                  for ours, theirs in pairs if {ours, theirs} <= turns.keys()}  # fmt: skip
        leakage = bench.leakage()
        padding = 1 - sum(len(d) for d in bench.documents) / (len(bench.data().stream.folders[0]) * args.row_len)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    given = {
        name: getattr(args, name)
        for name in ("width", "layers", "vocab", "row_len", "rows", "mean", "precision", "steps", "rounds")
    }
    return {"commit": commit, "torch": torch.__version__, "device": args.device, **given, "useful_tokens_per_sec": results,
            "ratios": ratios, "largest_change_across_documents": leakage, "padding_of_rows": round(padding, 4)}  # fmt: skip


def _spread(values: list[float], digits: int = 1) -> dict[str, float]:
    middle, least, most = statistics.median(values), min(values), max(values)
    return {"median": round(middle, digits), "min": round(least, digits), "max": round(most, digits)}


Turns = dict[str, Callable[[Clocks], None]]
Speeds = dict[str, list[float]]  # of every contestant, a number a round


def _round_by_round(bench: Bench, turns: Turns, rounds: int) -> tuple[Speeds, dict[str, float]]:
    """Speeds and memory of contestants one after the other."""
    speeds: Speeds = {name: [] for name in turns}
    memory = dict.fromkeys(turns, 0.0)
    for number in range(rounds):
        for name in rotated(list(turns), number):
            speed, gib = _alone(bench, turns[name])
            speeds[name].append(speed)
            memory[name] = max(memory[name], gib)
    return speeds, memory


def _step_by_step(bench: Bench, turns: Turns, rounds: int) -> tuple[Speeds, dict[str, float]]:
    """Memory of each alone, then speeds of all together."""
    steps, bench.steps = bench.steps, WARM + 1
    memory = {name: _alone(bench, turn)[1] for name, turn in turns.items()}
    bench.steps = steps
    keep_memory()
    speeds: Speeds = {name: [] for name in turns}
    for number in range(SETTLE + rounds):
        relay, names = Relay(), rotated(list(turns), number)
        clocks = {name: Clocks(bench.device, relay) for name in names}
        relay.run([partial(turns[name], clocks[name]) for name in names])
        for name in names if number >= SETTLE else ():
            speeds[name].append(clocks[name].speed())
    return speeds, memory


def _alone(bench: Bench, turn: Callable[[Clocks], None]) -> tuple[float, float]:
    """Speed of one contestant whose steps follow each other, and GiB."""
    clocks, watch = Clocks(bench.device), peak(bench.device)
    next(watch)
    turn(clocks)
    gc.collect()
    torch.cuda.empty_cache()
    return clocks.speed(), next(watch)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Of the command line; the defaults are for one CPU core."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = {
        "width": 128,
        "layers": 4,
        "vocab": 8192,
        "row_len": 512,
        "rows": 4,
        "mean": 150,
        "steps": 6,
        "rounds": 3,
        "loss_chunk": 0,
        "inner": 0,
        "heads": 0,
        "kv_heads": 0,
    }
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--recompute", type=_recompute, default=False, help="true, a number, selective or products")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def _recompute(text: str) -> Recompute:
    return (
        {"true": True, "false": False}.get(text) if text in ("true", "false") else int(text) if text.isdigit() else text
    )  # type: ignore[return-value]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print JSON."""
    args = arguments(argv)
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    result = run(args)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
