"""Quantizers whose codebook is learnt by gradients or not at all, from vector-quantize-pytorch."""

import torch
import vector_quantize_pytorch as vq
from torch import Tensor

from speechlm.nn.quantizer import Quantized, Quantizer


class FSQ(Quantizer):
    """Finite scalar quantisation: a projection to a few numbers, each rounded to a few levels. No codebook, no dead codes.

    Args:
        dim: D.
        levels: levels per number; V is their product, e.g. [8, 8, 8, 6, 5] is 15360 and [4, 4, 4, 4, 4, 4] is 4096.

    Source: Mentzer et al. 2023, arXiv 2309.15505; used in the tokenizers of CosyVoice 2 and 3.
    """

    def __init__(self, dim: int, levels: list[int]) -> None:
        super().__init__(dim, int(torch.tensor(levels).prod()))
        self.fsq = vq.FSQ(levels=levels, dim=dim)

    def forward(self, x: Tensor, real: Tensor) -> Quantized:
        with torch.autocast(x.device.type, enabled=False):
            q, codes = self.fsq(x.float())
        return Quantized(q.to(x), codes.long(), x.new_zeros((), dtype=torch.float32))

    def decode(self, codes: Tensor) -> Tensor:
        return self.fsq.indices_to_codes(codes)


class SimVQ(Quantizer):
    """A frozen random codebook behind one learnt linear map, so that every code moves when any code learns.

    Args:
        dim: D.
        num_codes: V.
        commitment: weight of the two-sided commitment loss.

    Source: Zhu et al. 2024, arXiv 2411.02038.
    """

    def __init__(self, dim: int, num_codes: int, commitment: float = 1.0) -> None:
        super().__init__(dim, num_codes)
        self.sim_vq = vq.SimVQ(dim=dim, codebook_size=num_codes, commitment_weight=commitment, rotation_trick=True)

    def forward(self, x: Tensor, real: Tensor) -> Quantized:
        with torch.autocast(x.device.type, enabled=False):
            kept = x.float()[real][None]  # padding must weigh nothing in the loss
            q_kept, codes_kept, loss = self.sim_vq(kept)
        q = torch.zeros_like(x, dtype=torch.float32).masked_scatter(real[..., None], q_kept)
        codes = torch.zeros_like(real, dtype=torch.long).masked_scatter(real, codes_kept)
        return Quantized(q.to(x), codes, loss)

    def decode(self, codes: Tensor) -> Tensor:
        return self.sim_vq.indices_to_codes(codes)
