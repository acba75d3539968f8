"""A plan of each stage, from its config and the machines: memory, operations, time, and what the run costs."""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng

from speechlm.nn.lora import Lora
from speechlm.planning.language_model import LMCost, LMRun, cost_of
from speechlm.planning.machines import GIB, Machine
from speechlm.planning.shapes import shape_of
from speechlm.planning.sound import SoundCost, flow_cost, vocoder_cost, whisper_cost
from speechlm.tokens.vocab import CONTROLS, Vocab

SPEECH_CODES = 16_384  # where no vocab.json says it yet
OTHER_GIB = 1.5  # of a GPU: the CUDA context and NCCL's buffers


@dataclass
class Plan:
    """What a stage takes.

    Attributes:
        stage: class of the stage, and the config.
        unit: what is counted, "tokens" or "seconds" of sound.
        memory_gib: of a GPU at the fullest moment, by part.
        parameters: of the model.
        gflop_per_unit: operations that learn something, forward and backward.
        executed: operations done over those.
        units_per_sec: of all GPUs together.
        units: of the whole run; 0 where the config does not say.
        bound: "operations", "network" or "memory": what is waited for.
        notes: assumptions that the numbers rest on.
    """

    stage: str
    unit: str
    memory_gib: dict[str, float]
    parameters: int
    gflop_per_unit: float
    executed: float
    units_per_sec: float
    units: float
    bound: str
    gpus: int
    notes: list[str] = field(default_factory=list)

    @property
    def total_gib(self) -> float:
        """Of a GPU."""
        return sum(self.memory_gib.values())

    @property
    def gpu_hours(self) -> float:
        """Of the run."""
        return self.units / self.units_per_sec / 3600 * self.gpus

    def as_dict(self, price: float) -> dict[str, Any]:
        """Plain values."""
        extra = {"total_gib": self.total_gib, "gpu_hours": self.gpu_hours, "cost": self.gpu_hours * price}
        return {**self.__dict__, **extra}


def plan_language_model(
    config: dict[str, Any], machine: Machine, efficiency: float, document: int | None, name: str
) -> Plan:
    """Of `SpeechLM` and what is built on it.

    Args:
        config: of the run, plain values.
        machine: it runs on.
        efficiency: share of the data sheet's operations that is reached.
        document: ids of a document, which decide about attention; None is whole rows.
        name: for the table.
    """
    run, notes = lm_run(config, machine)
    with isolate_rng():
        cost = cost_of(run)
    length = min(document or run.row_len, run.row_len)
    useful = cost.useful.per_token + run.predicted * cost.useful.per_target + cost.useful.per_pair * (length + 1) / 2
    seconds, bound = lm_step(run, cost, useful, machine, efficiency)
    memory = {part: size / GIB for part, size in cost.memory.items() if size} | {"other": OTHER_GIB}
    speed = machine.gpus * run.positions / seconds
    notes += [f"documents of {length} ids", f"{efficiency:.0%} of {machine.tflops:g} TFLOP/s"]
    units = tokens_of(config, run, machine)
    return Plan(name, "tokens", memory, cost.parameters, useful / 1e9, cost.executed, speed, units, bound, machine.gpus,
                notes)  # fmt: skip


def lm_step(run: LMRun, cost: LMCost, useful: float, machine: Machine, efficiency: float) -> tuple[float, str]:
    """Seconds of a micro-batch on each GPU, and what they are spent on; weights travel while others are computed with."""
    computing = run.positions * useful * cost.executed / (machine.tflops * 1e12 * efficiency)
    share = 1 - 1 / run.shards
    inside = machine.link_gb_per_sec if run.shards <= machine.per_node else machine.network_gb_per_sec
    travelling = (
        cost.parameters * share * (2 + 2 + 4) / (inside * 1e9)
    )  # gathered twice in bfloat16, gradients in float32
    groups = machine.gpus // run.shards
    if groups > 1:
        bytes_between = 2 * 4 * cost.parameters / run.shards * (1 - 1 / groups)
        travelling += bytes_between / (machine.slowest_gb_per_sec * 1e9)
    return max(computing, travelling), "operations" if computing >= travelling else "network"


def lm_run(config: dict[str, Any], machine: Machine) -> tuple[LMRun, list[str]]:
    """What of a config decides about a step, and what had to be assumed."""
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    shape, where = shape_of(model["lm"])
    notes = [f"shape: {where}"]
    row_len = row_length(data, trainer, notes)
    rows = (model.get("new_rows") or {}).get("pad_to") or 128
    strategy = trainer.get("strategy")
    settings = strategy.get("init_args") or {} if isinstance(strategy, dict) else {}
    sharded = isinstance(strategy, dict) and strategy["class_path"].endswith(("FSDP2", "ModelParallelStrategy"))
    shards = machine.gpus
    if settings.get("shard_size"):
        shards = machine.per_node if settings["shard_size"] == "node" else settings["shard_size"]
    lora = model.get("lora")
    return LMRun(
        shape=shape,
        vocab=-(-vocabulary(model, shape.vocab_size, notes) // rows) * rows,
        rows=data["batch_rows"],
        row_len=row_len,
        mixed=trainer.get("precision") == "bf16-mixed",
        shards=min(shards, machine.gpus) if sharded else 1,
        recompute=model.get("activation_checkpointing") or False,
        loss_chunk=model.get("loss_chunk"),
        ema=model.get("ema_decay") is not None,
        accumulated=trainer.get("accumulate_grad_batches") or 1,
        lora=None if not lora else Lora(**lora),
    ), notes


def vocabulary(model: dict[str, Any], num_text: int, notes: list[str]) -> int:
    """Ids, from vocab.json where there is one."""
    given = model["vocab"]
    if isinstance(given, str) and Path(given).exists():
        return len(Vocab.load(given))
    notes.append(f"{given} is not there yet: {SPEECH_CODES} speech codes beside the model's {num_text} rows assumed")
    return num_text + SPEECH_CODES + len(CONTROLS)


def row_length(data: dict[str, Any], trainer: dict[str, Any], notes: list[str]) -> int:
    """Ids of a row: of the first source that is there, or what the run's ids and steps come to."""
    for source in data["train"]:
        index = Path(source["path"]) / "index.json"
        if index.exists():
            from speechlm.tokens.rows import RowFolder

            return RowFolder(source["path"]).row_len
    steps, devices = max(0, trainer.get("max_steps") or 0), trainer.get("devices")
    ranks = (devices if isinstance(devices, int) else 1) * (trainer.get("num_nodes") or 1)
    rows = steps * rows_of_step(data, trainer, ranks)
    if data.get("total_tokens") and rows > 0:
        length = max(1, round(data["total_tokens"] / rows))
        notes.append(f"no rows are there yet: {length} ids each, as total_tokens and max_steps come to")
        return length
    notes.append("no rows are there yet: 8192 ids each assumed")
    return 8192


def rows_of_step(data: dict[str, Any], trainer: dict[str, Any], ranks: int) -> int:
    """Rows of an optimizer step, as the config says them or as so many ranks make them."""
    return data.get("step_rows") or ranks * data["batch_rows"] * (trainer.get("accumulate_grad_batches") or 1)


def tokens_of(config: dict[str, Any], run: LMRun, machine: Machine) -> float:
    """Ids of the whole run; 0 where the config does not say when it ends."""
    data, trainer = config["data"]["init_args"], config["trainer"]
    if data.get("total_tokens"):
        return float(data["total_tokens"])
    return max(0, trainer.get("max_steps") or 0) * rows_of_step(data, trainer, machine.gpus) * run.row_len


def plan_sound(config: dict[str, Any], machine: Machine, efficiency: float, kind: str, name: str) -> Plan:
    """Of a stage that trains on recordings: "tokenizer", "flow" or "vocoder"."""
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    seconds, mixed = float(data["batch_seconds"]), trainer.get("precision") == "bf16-mixed"
    if kind == "tokenizer":
        cost = whisper_cost(model, seconds, mixed)
    else:
        cost = (flow_cost if kind == "flow" else vocoder_cost)(model, config["clock"], seconds, mixed)
    step = cost.traced.flops / (machine.tflops * 1e12 * efficiency)
    travelling = 2 * 4 * cost.parameters * (1 - 1 / machine.gpus) / (machine.slowest_gb_per_sec * 1e9)
    speed = machine.gpus * seconds / max(step, travelling)
    notes = [f"shape: {cost.where}", f"{efficiency:.0%} of {machine.tflops:g} TFLOP/s"]
    steps = max(trainer.get("max_steps") or 0, (model.get("optimizer") or {}).get("total_steps") or 0)
    per_step = machine.gpus * (trainer.get("accumulate_grad_batches") or 1) * seconds
    executed = cost.traced.flops / cost.useful
    return Plan(name, "seconds", _sound_memory(cost, model, mixed), cost.parameters, cost.useful / seconds / 1e9, executed,
                speed, steps * per_step, "operations" if step >= travelling else "network", machine.gpus, notes)  # fmt: skip


def _sound_memory(cost: SoundCost, model: dict[str, Any], mixed: bool) -> dict[str, float]:
    each = cost.parameters / GIB
    return {
        "weights": 4 * each,
        "gradients": 4 * each,
        "optimizer": 8 * each,
        "average": 4 * each * (model.get("ema_decay") is not None),
        "activations": cost.traced.kept / GIB,
        "buckets of gradients": 4 * each,
        "other": OTHER_GIB,
    }


def plan_synthesis(config: dict[str, Any], machine: Machine, per_gpu: float | None, name: str) -> Plan:
    """Of speaking text corpora: ids generated.

    Args:
        config: of the verb.
        machine: it runs on.
        per_gpu: ids per second and GPU, where they were measured.
        name: for the table.
    """
    shape, _ = shape_of("Qwen/Qwen2.5-1.5B")
    width, layers, inner = shape.hidden_size, shape.num_hidden_layers, shape.intermediate_size
    kv = shape.num_key_value_heads * (width // shape.num_attention_heads)
    weights = layers * (2 * width * width + 2 * width * kv + 3 * width * inner)
    count = weights + (shape.vocab_size + SPEECH_CODES) * width
    batch, seen = 256, 400  # requests at a time, and ids each of them looks back on
    bytes_step = 2 * count + batch * seen * layers * 2 * kv * 2
    limit = batch / max(bytes_step / (machine.memory_tb_per_sec * 1e12), 2 * count * batch / (machine.tflops * 1e12))
    reached = per_gpu or PAPER_SYNTHESIS
    memory = {
        "weights": 2 * count / GIB,
        "keys and values": prod((batch, seen, layers, 2, kv, 2)) / GIB,
        "other": OTHER_GIB,
    }
    notes = [
        f"{reached:g} ids per second and GPU " + ("as given" if per_gpu else "(the paper's, on one H800)"),
        f"reading weights, keys and values limits it to {limit:,.0f}",
        f"a text-to-token model of {count / 1e9:.2f} B numbers",
    ]
    return Plan(name, "tokens", memory, count, 2 * count / 1e9, 1.0, reached * machine.gpus, float(config.get("target_ids") or 0),
                "memory", machine.gpus, notes)  # fmt: skip


PAPER_SYNTHESIS = 25_000.0
