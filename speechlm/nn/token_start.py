"""Where a decoder's token embedding begins: at the vectors that the tokenizer itself has for its codes.

Codes that sound alike then begin alike, and a code that was hardly heard in training means what its neighbours mean. A table that
begins as noise has to hear every code often enough: of 16,384 codes, an hour of speech brings each 2.7 times.
"""

import torch
from safetensors.torch import load_file
from torch import Tensor

CODEBOOK = "codebook"  # name of the tensor in the file


def read_codebook(path: str) -> Tensor:
    """(V, D) float32 vectors by code, as `python -m speechlm.export --format codebook` writes them.

    Raises:
        ValueError: the file is no safetensors, or holds no finite codebook.
    """
    try:
        vectors = load_file(path).get(CODEBOOK)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no safetensors file of a codebook ({error})") from error
    if vectors is None or vectors.ndim != 2 or not vectors.is_floating_point() or not bool(vectors.isfinite().all()):
        raise ValueError(
            f"{path} must hold finite vectors (V, D) named {CODEBOOK!r}; write it with `speechlm.export --format codebook`"
        )
    return vectors.float()


def start_from(table: Tensor, vectors: Tensor) -> None:
    """Fill a (V, W) embedding with (V, D) vectors, on as many of their main axes as fit, at the table's own spread.

    Raises:
        ValueError: another number of codes.
    """
    if len(table) != len(vectors):
        raise ValueError(
            f"the codebook has {len(vectors)} codes, the decoder {len(table)}; set `num_tokens` of its network, or give "
            f"the codebook of the tokenizer whose tokens it learns"
        )
    vectors = vectors.to(table.device) - vectors.mean(0).to(table.device)
    if vectors.shape[1] > table.shape[1]:
        axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)
        vectors = vectors @ axes[:, : table.shape[1]]
    spread = vectors.square().sum(1).mean().sqrt().clamp(min=1e-8)
    with torch.no_grad():
        table.zero_()
        table[:, : vectors.shape[1]] = vectors * (table.shape[1] ** 0.5 / spread)
