"""Tests stay offline, and leave the machine's other cores to whoever needs them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
