"""What a job runs on: operations, memory and links of a GPU, by name."""

import re
from dataclasses import dataclass

GIB = 2.0**30


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind.

    Attributes:
        name: of the GPU.
        gpus: of the whole job.
        tflops: dense bfloat16, 10^12 operations a second, by the vendor's data sheet.
        memory_gib: of one GPU.
        memory_tb_per_sec: its bandwidth.
        link_gb_per_sec: to other GPUs of a node, each way.
        network_gb_per_sec: to other nodes, per GPU, each way.
        per_node: GPUs of a node.
    """

    name: str
    gpus: int
    tflops: float
    memory_gib: float
    memory_tb_per_sec: float
    link_gb_per_sec: float
    network_gb_per_sec: float = 50.0  # eight adapters of 400 Gb/s a node
    per_node: int = 8

    @property
    def slowest_gb_per_sec(self) -> float:
        """Of the links that all GPUs together have."""
        return self.link_gb_per_sec if self.gpus <= self.per_node else self.network_gb_per_sec


#: Vendors' data sheets: operations, memory, its bandwidth, NVLink (a half of what is advertised: one way) or PCIe.
KNOWN: dict[str, tuple[float, float, float, float]] = {
    "B200": (2250.0, 180.0, 7.7, 900.0),
    "H200": (989.0, 139.0, 4.8, 450.0),
    "H800": (989.0, 79.0, 3.35, 200.0),
    "H100": (989.0, 79.0, 3.35, 450.0),
    "H20": (148.0, 95.0, 4.0, 450.0),
    "A800": (312.0, 79.0, 2.0, 200.0),
    "A100": (312.0, 79.0, 2.0, 300.0),
    "L40S": (362.0, 47.0, 0.86, 32.0),
    "L20": (119.5, 47.0, 0.86, 32.0),
    "4090": (165.0, 23.5, 1.0, 32.0),
}


def machine(text: str) -> Machine:
    """`64xH800`, or `H200` for one.

    Raises:
        ValueError: it is not of that form, or the GPU is not known.
    """
    found = re.fullmatch(r"(?:(\d+)\s*[xX×*]\s*)?([A-Za-z0-9]+)", text.strip())
    count = int(found[1] or 1) if found else 0
    if found is None or count < 1 or found[2].upper() not in KNOWN:
        raise ValueError(f"GPUs are given as 64xH800, of {', '.join(KNOWN)}; got {text!r}")
    return Machine(found[2].upper(), count, *KNOWN[found[2].upper()])
