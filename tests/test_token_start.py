"""Where a decoder's token embedding begins."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from speechlm.nn.token_start import read_codebook, start_from


@pytest.mark.parametrize("width", [6, 16])
def test_codes_that_are_near_in_the_codebook_are_near_in_the_table(width: int):
    draw = torch.Generator().manual_seed(0)
    places = torch.randn(4, 2, generator=draw) @ torch.randn(2, 12, generator=draw)
    vectors = 5.0 + places.repeat_interleave(10, 0) + 0.01 * torch.randn(40, 12, generator=draw)
    table = torch.randn(40, width, generator=draw)
    start_from(table, vectors)
    distances = torch.cdist(table, table)
    group = torch.arange(40) // 10
    assert distances[group[:, None] == group].max() < 0.1 * distances[group[:, None] != group].min()
    assert table.square().mean() == pytest.approx(1.0, rel=1e-4)


def test_a_codebook_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="the codebook has 8 codes, the decoder 9"):
        start_from(torch.zeros(9, 4), torch.ones(8, 4))
    save_file({"weights": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"must hold finite vectors \(V, D\) named 'codebook'"):
        read_codebook(str(tmp_path / "other.safetensors"))
    save_file({"codebook": torch.full((2, 2), torch.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="finite"):
        read_codebook(str(tmp_path / "nan.safetensors"))
    (tmp_path / "no.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match="no safetensors file of a codebook"):
        read_codebook(str(tmp_path / "no.safetensors"))
    with pytest.raises(FileNotFoundError):
        read_codebook(str(tmp_path / "missing.safetensors"))
