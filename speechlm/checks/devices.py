"""Accelerators, attention, and whether processes can talk to each other."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from speechlm.checks.finding import Finding, size
from speechlm.nn.document_attention import choose, document_mask, use_attention

BUSY_SHARE = 0.05  # of a GPU's memory that is in use before the job began
TALK_SEC = 120


def gpus_are_there(accelerator: str, wanted: int) -> Iterator[Finding]:
    """As many GPUs as the config asks for, alike and empty.

    Args:
        accelerator: of the trainer.
        wanted: per machine; 0 takes what is there.
    """
    count = torch.cuda.device_count()
    if accelerator == "cpu" or (accelerator == "auto" and count == 0):
        advice = (
            "" if accelerator == "cpu" else "training on the CPU; on a machine with GPUs look at the driver: nvidia-smi"
        )
        yield Finding(
            "devices",
            "mind" if advice else "good",
            f"no GPU wanted, {os.cpu_count()} CPUs" if not advice else "no GPU found",
            advice,
        )
        return
    if count == 0 or count < wanted:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        found = f"{count} GPUs found, {max(1, wanted)} wanted"
        found += f" (CUDA_VISIBLE_DEVICES {seen!r}, torch for CUDA {torch.version.cuda})"
        advice = "ask for --gpus-per-node, install torch for CUDA, or a driver as new as that CUDA"
        yield Finding("devices", "broken", found, advice)
        return
    names = {torch.cuda.get_device_name(index) for index in range(count)}
    busy = [i for i in range(count) if (m := torch.cuda.mem_get_info(i))[0] < (1 - BUSY_SHARE) * m[1]]
    found = f"{count} x {', '.join(sorted(names))}, {size(torch.cuda.mem_get_info(0)[1])} each"
    if busy:
        yield Finding(
            "devices", "mind", f"{found}; memory of {busy} is in use", "end what runs there: nvidia-smi shows it"
        )
    elif len(names) > 1:
        yield Finding(
            "devices", "mind", found, "the slowest sets the pace: ask for one kind, --sbatch=--constraint=..."
        )
    elif not torch.cuda.is_bf16_supported():
        yield Finding(
            "devices", "broken", f"{found} without bfloat16", "train with --trainer.precision 32, or on newer GPUs"
        )
    else:
        yield Finding("devices", "good", found)


def attention_works(attention: str) -> Iterator[Finding]:
    """The attention that a language model's config asks for, forward and backward, against the plain one on packed documents."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = choose(attention, device)  # type: ignore[arg-type]  # it refuses what is none
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    lm = Qwen2ForCausalLM(config).to(device)
    ids = torch.randint(64, (1, 256), device=device)
    doc_ids = (torch.arange(256, device=device) // 100)[None].int()
    positions = (torch.arange(256, device=device) % 100)[None]
    began = time.perf_counter()
    logits = {}
    for name in ("sdpa", chosen):
        use_attention(lm, name)
        with torch.set_grad_enabled(not (name == "flex" and device.type == "cpu")):  # torch has no backward of it there
            logits[name] = lm(ids, attention_mask=document_mask(doc_ids, name), position_ids=positions).logits
        if logits[name].requires_grad:
            logits[name].sum().backward()
    difference = (logits["sdpa"] - logits[chosen]).abs().max().item()
    found = f"{chosen} on {device.type}, {difference:.1g} from the plain form, {time.perf_counter() - began:.1f} s"
    if difference > 1e-2:
        yield Finding(
            "attention", "broken", found, "set model.init_args.attention to sdpa, and report this with the GPU's name"
        )
    elif chosen == "sdpa" and device.type == "cuda":
        yield Finding(
            "attention", "mind", f"{found}; a dense mask of every row", "set model.init_args.attention to auto"
        )
    else:
        yield Finding("attention", "good", found)


def processes_talk(processes: int) -> Iterator[Finding]:
    """Processes of this machine add up a tensor: by NCCL, one GPU each, or by Gloo where there is none.

    Args:
        processes: that would run here.
    """
    gpus = torch.cuda.device_count()
    backend = "nccl" if gpus else "gloo"
    if gpus and not torch.distributed.is_nccl_available():
        yield Finding("NCCL", "broken", "torch was built without it", "install torch from PyPI for Linux")
        return
    count = min(processes, gpus) if gpus else min(processes, 2)
    if count < 2:
        yield Finding("NCCL" if gpus else "Gloo", "good", f"one process: {backend} has nobody to talk to")
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "speechlm.checks.talk", backend, str(port), str(count)]
    started = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    yield _heard(started, backend, count)


def _heard(started: list[Any], backend: str, count: int) -> Finding:
    name = "NCCL" if backend == "nccl" else "Gloo"
    advice = "run again with NCCL_DEBUG=INFO; often a firewall, /dev/shm, or NCCL_SOCKET_IFNAME naming no interface"
    try:
        outs = [process.communicate(timeout=TALK_SEC) for process in started]
    except subprocess.TimeoutExpired:
        return Finding(name, "broken", f"{count} processes do not find each other within {TALK_SEC} s", advice)
    finally:
        for process in started:
            process.kill()
    failed = [
        (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:300]
        for process, (_, err) in zip(started, outs, strict=True)
        if process.returncode
    ]
    if failed:
        return Finding(name, "broken", f"{len(failed)} of {count} processes failed: {failed[0]}", advice)
    version = ".".join(map(str, torch.cuda.nccl.version())) + ", " if backend == "nccl" else ""
    return Finding(name, "good", f"{version}{count} processes, {outs[0][0].strip()}")
