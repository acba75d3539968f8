"""The flow decoder's released weights: the released code's numbers, in and out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechlm.nn.estimator import Conditions
from speechlm.nn.flow_released import ReleasedFlow, write_flow
from speechlm.nn.length_regulator import StretchedTokens
from speechlm.nn.token_encoder import TokenEncoder
from speechlm.nn.token_to_mel import Prompt, TokenToMel
from speechlm.nn.unet import UNet
from tests.tiny_flow import CLOCK, causal, released

GOLDEN = Path(__file__).parent / "golden" / "glm4voice_flow"
EXPECTED = load_file(GOLDEN / "expected.safetensors")
SHAPE = json.loads((GOLDEN / "hparams.json").read_text())


def read(path: Path = GOLDEN / "flow.safetensors") -> ReleasedFlow:
    return ReleasedFlow(CLOCK, str(path), SHAPE["block_size"], head_width=SHAPE["hdim"])


@pytest.fixture(scope="module")
def golden() -> ReleasedFlow:
    return read().eval()


@torch.no_grad()
def test_every_part_gives_the_released_numbers(golden: ReleasedFlow):
    tokens, lens = EXPECTED["token"], torch.tensor([EXPECTED["token"].shape[1]])
    assert (golden.encode(tokens, lens) - EXPECTED["encoder_out"]).abs().max() < 1e-4
    mel_lens = CLOCK.frames_of_tokens(lens)
    mu = golden.frames(tokens, lens, mel_lens)
    assert (mu.transpose(1, 2) - EXPECTED["mu"]).abs().max() < 1e-4
    conditions = Conditions(mu, golden.speaker(None, 1), EXPECTED["estimator_cond"])
    for ends in (None, mel_lens):  # a mask of ones changes nothing
        v = golden.estimator(
            EXPECTED["estimator_x"], EXPECTED["estimator_t"], conditions, ends, golden.blocks(0, int(mel_lens))
        )
        assert (v - EXPECTED["estimator_out"]).abs().max() < 1e-4


def test_the_mel_is_that_of_the_released_code(golden: ReleasedFlow):
    tokens, lens = EXPECTED["token"], torch.tensor([EXPECTED["token"].shape[1]])
    with torch.no_grad():
        mel, mel_lens = golden.sample(tokens, lens, z=EXPECTED["z"])
    assert (mel - EXPECTED["mel"]).abs().max() < 1e-4
    assert mel_lens.tolist() == [158]


def test_the_mel_behind_a_prompt_is_that_of_the_released_code(golden: ReleasedFlow):
    tokens, ten = EXPECTED["token"], torch.tensor([10])
    prompt = Prompt(tokens[:, :10], ten, EXPECTED["mel"][:, :, :68], torch.tensor([68]))
    z = torch.randn(1, SHAPE["mels"], 158, generator=torch.Generator().manual_seed(42))
    with torch.no_grad():
        mel, mel_lens = golden.sample(tokens[:, 10:], torch.tensor([13]), prompt=prompt, z=z)
    assert (mel - EXPECTED["mel_with_prompt"]).abs().max() < 1e-4
    assert mel_lens.tolist() == [90]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_survive_writing_and_reading_bit_by_bit(golden: ReleasedFlow, tmp_path: Path, suffix: str):
    write_flow(golden, tmp_path / f"flow{suffix}")
    again = read(tmp_path / f"flow{suffix}")
    assert again.state_dict().keys() == golden.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(golden.parameters(), again.parameters(), strict=True))
    write_flow(again, tmp_path / "again.safetensors")
    released_names, ours = load_file(GOLDEN / "flow.safetensors"), load_file(tmp_path / "again.safetensors")
    assert released_names.keys() == ours.keys()
    assert all(torch.equal(released_names[name], ours[name]) for name in ours)


def test_a_network_of_three_rates_is_written_and_read(tmp_path: Path):
    write_flow(released(), tmp_path / "flow.safetensors")
    again = ReleasedFlow(CLOCK, str(tmp_path / "flow.safetensors"), head_width=4)
    assert all(torch.equal(a, b) for a, b in zip(released().parameters(), again.parameters(), strict=True))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path):
    torch.save({"encoder.after_norm.bias": Path("x")}, tmp_path / "flow.pt")
    with pytest.raises(ValueError, match="read safely"):
        read(tmp_path / "flow.pt")


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    weights = load_file(GOLDEN / "flow.safetensors")
    weights["more"] = weights.pop("encoder.after_norm.bias")
    save_file(weights, tmp_path / "flow.safetensors")
    with pytest.raises(ValueError, match=r"missing: encoder\.after_norm\.bias.*\n  not in the model: more"):
        read(tmp_path / "flow.safetensors")
    save_file({"more": weights["more"]}, tmp_path / "flow.safetensors")
    with pytest.raises(ValueError, match="holds no flow decoder: it lacks"):
        read(tmp_path / "flow.safetensors")


def test_what_the_released_code_can_not_run_is_not_written_for_it(tmp_path: Path):
    with pytest.raises(ValueError, match="ClockedTokens with DiT"):
        write_flow(causal(), tmp_path / "flow.safetensors")
    network = released()
    network.mel_std = 2.0
    with pytest.raises(ValueError, match="mel_std"):
        write_flow(network, tmp_path / "flow.safetensors")
    with pytest.raises(ValueError, match=r"written to \.safetensors or \.pt"):
        write_flow(released(), tmp_path / "flow.bin")


def test_the_default_parts_are_the_released_shape():
    with torch.device("meta"):
        encoder, regulator, unet = TokenEncoder(), StretchedTokens(), UNet()
        network = TokenToMel(CLOCK, encoder=encoder, length_regulator=regulator, estimator=unet)
    assert sum(p.numel() for p in network.parameters()) == 111_166_208  # published as 111.2 M
