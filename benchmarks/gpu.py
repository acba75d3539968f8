"""Every measurement that needs a GPU, in under eight minutes, into one table.

    python benchmarks/gpu.py [--device cuda] [--seconds 470] [--out results.md] [--only ceilings,attention,…]

Needs torch, transformers, lightning and xxhash, and this repository; `accelerate` for the comparison with Hugging Face's Trainer,
lhotse for `corpus`. Each section runs in a process of its own with a limit of its own, the most important first; what fails or
does not fit into the time is a row that says so. `--device cpu` runs the same code at tiny sizes, to see that it runs.

Sections: ceilings (matrix product, copy), pretrain_1.5b (Lightning's stack, a loop), pretrain_hf (Hugging Face's Trainer), head
(head and loss: speed, memory, gradients), attention (ways to stay in a document: speed, equal results), slice_9b (9B from slices
of 6 and 10 layers), tokenize (speech tokens of sound in memory), float8 (of the 1.5B, compiled), generate, decode (the benchmarks
of these names), corpus (`bulk_tokenize.py`, files to shards).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
Row = dict[str, Any]


def timed(work: Callable[[], Any], device: str, repeats: int = 10) -> float:
    """Median seconds, after two that are not counted."""
    taken = []
    for _ in range(repeats + 2):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return sorted(taken[2:])[repeats // 2]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def row(metric: str, value: float, unit: str, baseline: float | None = None, note: str = "") -> Row:
    """Of the table."""
    ratio = None if not baseline else round(value / baseline, 3)
    return {
        "metric": metric,
        "value": round(value, 4),
        "unit": unit,
        "baseline": baseline,
        "ratio": ratio,
        "note": note,
    }


def ceilings(device: str) -> list[Row]:
    """What the device can do at all, on random numbers."""
    size = 8192 if device == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = 2 * size**3 / timed(lambda: a @ b, device, 20) / 1e12
    source = torch.empty(2**30 if device == "cuda" else 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / timed(lambda: target.copy_(source), device, 20) / 1e12
    return [
        row(f"matrix product {size}^3 bf16", product, "TFLOP/s"),
        row("copy", copied, "TB/s", note="read and written"),
    ]


def attention(device: str) -> list[Row]:
    """Forward and backward of one layer's attention at the 1.5B's heads: rows of documents, three ways."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from speechlm.nn import document_attention as ways

    rows, length, heads, kv, dim = (4, 8192, 12, 2, 128) if device == "cuda" else (1, 128, 4, 2, 16)
    generator = torch.Generator().manual_seed(0)
    docs = (torch.rand(rows, length, generator=generator) < 6 / length).int().cumsum(1).to(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q, k, v = (
        torch.randn(rows, n, length, dim, device=device, dtype=dtype, requires_grad=True) for n in (heads, kv, kv)
    )
    out: dict[str, tuple[float, list[torch.Tensor]]] = {}
    for name in ("sdpa", "varlen", "flex") if device == "cuda" else ("sdpa", "varlen"):  # flex has no way back on a CPU
        mask: Any = ways.document_mask(docs, name)  # type: ignore[arg-type]
        module = torch.nn.Module()
        module.num_key_value_groups, module.is_causal = heads // kv, True  # type: ignore[assignment]

        def once(name: str = name, mask: Any = mask, module: Any = module) -> list[torch.Tensor]:
            forward = ALL_ATTENTION_FUNCTIONS[ways.NAMES[name]]
            result = forward(module, q, k, v, mask, scaling=dim**-0.5)[0]
            return [result, *torch.autograd.grad(result.float().square().sum(), (q, k, v))]

        out[name] = (timed(once, device, 5), once())
    exact = out["sdpa"][1]
    rows_out = []
    for name, (seconds, tensors) in out.items():
        error = max(float((x - y).float().norm() / y.float().norm()) for x, y in zip(tensors, exact, strict=True))
        speed = rows * length / seconds / 1e6
        dense = rows * length / out["sdpa"][0] / 1e6
        rows_out.append(
            row(f"attention {name}, forward and backward", speed, "M tokens/s", dense, f"differs by {error:.1e}")
        )
    return rows_out


def head(device: str) -> list[Row]:
    """Head and loss, forward and backward: speed, extra memory, gradients against float64's (of a part)."""
    from speechlm.nn.loss_kernels import find_kernel, require_equal

    count, width, vocab = (4 * 8192, 1536, 168_960) if device == "cuda" else (256, 32, 1024)
    states = torch.randn(count, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(vocab, width, device=device)).bfloat16().requires_grad_()
    labels = torch.randint(vocab, (count,), device=device)
    forms: dict[str, Callable[[], torch.Tensor]] = {}
    for chunk in (512, 1024) if device == "cuda" else (64,):
        forms[f"chunked, {chunk}"] = lambda c=chunk: find_kernel("chunked")(states, weight, labels, c, 0.0).sum()  # type: ignore[misc]
    try:
        kernel = find_kernel("liger")
        if device == "cuda":
            require_equal(kernel, "liger", torch.device(device), torch.bfloat16)
            forms["liger"] = lambda: kernel(states, weight, labels, 0, 0.0).sum()
    except ValueError as error:
        print(f"liger: {error}", file=sys.stderr)
    forms["whole, as transformers"] = lambda: F.cross_entropy(F.linear(states, weight).float(), labels, reduction="sum")
    rows_out, base = [], None
    for name, form in reversed(forms.items()):

        def once(form: Callable[[], torch.Tensor] = form) -> None:
            torch.autograd.grad(form(), (states, weight))

        try:
            seconds = timed(once, device, 5)
        except torch.OutOfMemoryError:
            rows_out.append(row(f"head and loss {name}", 0.0, "TFLOP/s", note="out of memory"))
            continue
        base = base or 8 * count * vocab * width / seconds / 1e12
        own = (states.numel() + weight.numel()) * states.element_size() / 2**30
        note = f"extra {_extra_gib(once) - own:.2f} GiB beside the gradients" if device == "cuda" else ""
        rows_out.append(row(f"head and loss {name}", 8 * count * vocab * width / seconds / 1e12, "TFLOP/s", base, note))
    return rows_out


def _extra_gib(work: Callable[[], Any]) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


OURS, TRAINER = "1.5B, Lightning's stack", "1.5B, Hugging Face's Trainer, batches grouped by length"


def pretrain(device: str) -> list[Row]:
    """The 1.5B by Lightning's whole stack and by a loop."""
    found = _pretrained(device, "lightning,plain", compiled=True)
    speeds = found["useful_tokens_per_sec"]
    ours, loop = speeds["lightning"], speeds["plain"]
    return [
        row(OURS, ours["median"], "tokens/s", None, f"{ours['peak_gib']} GiB"),
        row(f"{OURS} against a loop", ours["median"], "tokens/s", loop["median"], f"{loop['peak_gib']} GiB"),
        row("change of other documents' logits", found["largest_change_across_documents"], "", note="0 is no leakage"),
    ]


def pretrain_hf(device: str) -> list[Row]:
    """The same by transformers' Trainer, not compiled: every batch has another length."""
    if not _has("accelerate"):
        return [row(TRAINER, 0.0, "", note="accelerate is not installed")]
    theirs = _pretrained(device, "hf grouped", compiled=False)["useful_tokens_per_sec"]["hf grouped"]
    return [row(TRAINER, theirs["median"], "tokens/s", None, f"{theirs['peak_gib']} GiB")]


def _pretrained(device: str, names: str, compiled: bool) -> dict[str, Any]:
    from benchmarks.pretrain import arguments, run

    if device == "cuda":
        sizes = "--width 1536 --layers 28 --vocab 168960 --inner 8960 --heads 12 --kv_heads 2 --row_len 8192 --rows 2 --mean 1485"
        extra = "--steps 8 --rounds 1 --loss_chunk 1024 --precision bf16 --device cuda --recompute selective"
        extra += " --compile" * compiled
    else:
        sizes, extra = "--width 32 --layers 1 --vocab 512 --row_len 64 --rows 2 --mean 20", "--steps 1 --rounds 1"
    return run(arguments([*sizes.split(), *extra.split(), "--only", names]))


def slice_9b(device: str) -> list[Row]:
    """The 9B, all of whose states one GPU does not hold, from slices."""
    from speechlm.nn.speed import Speed
    from speechlm.planning.calibrate import calibrate
    from speechlm.planning.language_model import LMRun
    from speechlm.planning.shapes import KNOWN

    shape = KNOWN["zai-org/glm-4-9b-hf"]
    run = LMRun(shape, 168_960, 1, 8192, recompute="selective", loss_chunk=1024)
    steps, slices = 8, (6, 10)
    if device == "cpu":
        small = type(shape)(vocab_size=256, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
                            head_dim=8, pad_token_id=0)  # fmt: skip
        run, steps, slices = LMRun(small, 256, 1, 64, mixed=False), 1, (1, 2)
    found = calibrate(run, torch.device(device), steps, 1485, "auto", Speed(compile=device == "cuda"), slices)
    speed = run.positions / found.seconds(40)
    note = f"{1e3 * found.layer_sec:.1f} ms a layer, {1e3 * found.rest_sec:.1f} ms beside, {found.peak_bytes / 2**30:.0f} GiB"
    return [row("9B, 40 layers from two slices", speed, "tokens/s", None, note)]


def float8(device: str) -> list[Row]:
    """Layers of the 1.5B in float8 against bfloat16, both compiled."""
    from speechlm.nn.causal_lm import blocks
    from speechlm.nn.speed import compile_layers, use_float8

    if not _has("torchao"):
        return [row("float8", 0.0, "", note="torchao is not installed")]
    from transformers import AutoModelForCausalLM

    from benchmarks.pretrain import arguments, shape_of

    words = (
        "--width 1536 --layers 4 --vocab 512 --inner 8960 --heads 12 --kv_heads 2"
        if device == "cuda"
        else "--width 32 --layers 1 --vocab 64"
    )
    length = 8192 if device == "cuda" else 32
    speeds = {}
    for form in (None, "rowwise", "tensorwise") if device == "cuda" else (None, "emulated"):
        with torch.device(device):
            lm = AutoModelForCausalLM.from_config(shape_of(arguments(words.split())), dtype=torch.float32)
        if form:
            use_float8(blocks(lm), form)  # type: ignore[arg-type]
        if device == "cuda":
            compile_layers(blocks(lm))
        ids = torch.zeros(1, length, dtype=torch.long, device=device)

        def once(lm: Any = lm, ids: torch.Tensor = ids) -> None:
            with torch.autocast(device, torch.bfloat16):
                lm.base_model(input_ids=ids, use_cache=False).last_hidden_state.float().sum().backward()

        speeds[form or "bf16"] = length / timed(once, device, 5)
    return [row(f"4 layers of the 1.5B, {n}", s, "tokens/s", speeds["bf16"]) for n, s in speeds.items()]


def tokenize(device: str) -> list[Row]:
    """Sound to speech tokens by the paper's tokenizer, against transformers' usual loop."""
    from benchmarks.speech_tokens import measure

    speed, base, note = measure(device, timed)
    return [row("speech tokens, large-v3 up to layer 16, sound in memory", speed, "x real time", base, note)]


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


SECTIONS: dict[str, tuple[int, Callable[[str], list[Row]]]] = {  # seconds at most, what is run
    "ceilings": (40, ceilings), "pretrain_1.5b": (150, pretrain), "pretrain_hf": (90, pretrain_hf), "head": (60, head),
    "attention": (60, attention), "slice_9b": (100, slice_9b), "tokenize": (60, tokenize), "float8": (80, float8),
}  # fmt: skip
OTHERS = {
    "generate": (90, "generate.py --prompts 512 --batch 256 --layers 28 --dtype bfloat16 --rounds 1 --device cuda"),
    "decode": (60, "decode.py --dtype bfloat16 --repeats 5 --minutes 0.5 --device cuda"),
    "corpus": (90, "bulk_tokenize.py --large_v3 --precision bf16 --recordings 64 --usual_recordings 8 --draws 1 --device cuda"),
}  # fmt: skip
TINY = {
    "corpus": "bulk_tokenize.py --recordings 2 --draws 1 --usual_recordings 1",
    "generate": "generate.py --prompts 2 --batch 2 --layers 1 --rounds 1",
    "decode": "decode.py --shape small --recordings 2 --batch 2 --repeats 1 --minutes 0.02 --steps 2",
}


def section(name: str, device: str, left: float, folder: Path) -> list[Row]:
    """Rows of a section, run in a process of its own; what went wrong is a row too."""
    if name in SECTIONS:
        limit, command = SECTIONS[name][0], [__file__, "--section", name, "--device", device]
    else:
        words = (OTHERS[name][1] if device == "cuda" else TINY[name]).split()
        limit, command = OTHERS[name][0], [str(ROOT / "benchmarks" / words[0]), *words[1:]]
    if device == "cpu":
        limit = 600
    if left < 15:
        return [row(name, 0.0, "", note="skipped: no time left")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=min(limit, left), check=False,
                              cwd=ROOT, env=environment)  # fmt: skip
    except subprocess.TimeoutExpired:
        return [row(name, 0.0, "", note=f"stopped after {min(limit, left):.0f} s")]
    (folder / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        return [row(name, 0.0, "", note=f"failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:150]}")]
    if name in SECTIONS:
        return json.loads(done.stdout.splitlines()[-1])
    return [row(name, float(done.returncode == 0), "ran", note=" / ".join(done.stdout.split("\n"))[:600])]


def table(rows: list[Row], header: str) -> str:
    """As markdown."""
    lines = [header, "", "| measurement | value | unit | baseline | ratio | note |", "|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join("" if r[k] is None else str(r[k]).replace("|", "/") for k in
              ("metric", "value", "unit", "baseline", "ratio", "note")) + " |" for r in rows]  # fmt: skip
    return "\n".join(lines) + "\n"


def against_trainer(rows: list[Row]) -> list[Row]:
    """One row with the ratio, where both were measured."""
    speeds = {one["metric"]: one for one in rows if one["metric"] in (OURS, TRAINER) and one["value"]}
    if len(speeds) < 2:
        return []
    ours, theirs = speeds[OURS], speeds[TRAINER]
    return [row(f"{OURS} against Hugging Face's Trainer", ours["value"], "tokens/s", theirs["value"], theirs["note"])]


def main(argv: list[str] | None = None) -> int:
    """Run everything; 1 where a section failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=470.0, help="for everything")
    parser.add_argument("--out", type=Path, default=Path("gpu_results.md"))
    parser.add_argument("--only", default=",".join([*SECTIONS, *OTHERS]))
    parser.add_argument(
        "--section", choices=SECTIONS, help="one of them, in this process, as JSON: used by the script itself"
    )
    args = parser.parse_args(argv)
    if args.section:
        print(json.dumps(SECTIONS[args.section][1](args.device)))
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu runs the same at tiny sizes")
    end, rows = time.monotonic() + args.seconds, []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, tiny sizes: these numbers say nothing"
    header = f"{name}, torch {torch.__version__}, commit {commit.stdout.strip() or 'unknown'}"
    for one in args.only.split(","):
        began = time.monotonic()
        rows += section(one, args.device, end - began, args.out.parent)
        if one == "pretrain_hf":
            rows += against_trainer(rows)
        args.out.write_text(table(rows, header), encoding="utf-8")  # what is there is there, whatever comes
        print(f"{one}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(table(rows, header))
    return int(any(str(r["note"]).startswith(("failed", "stopped")) for r in rows))


if __name__ == "__main__":
    sys.exit(main())
