"""A codec that is not ours gives tokens in bulk like our own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MimiConfig, MimiModel

from datamodules.recordings import load_recording
from datamodules.token_cuts import read_token_cuts, tokens_of
from datamodules.token_folder import TokenFolder
from speechlm.nn.mimi import MimiTokens
from tests.audio_corpus import make_corpus
from tests.token_corpus import tokenized


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Mimi of a few thousand random parameters, 64 codes in each of 4 codebooks."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_filters": 4, "intermediate_size": 32, "num_hidden_layers": 1, "sliding_window": 25}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "upsample_groups": 32}
    codes = {"codebook_size": 64, "codebook_dim": 8, "num_quantizers": 4, "vector_quantization_hidden_dimension": 8}
    model = MimiModel(MimiConfig(**sizes, **heads, **codes))
    for name, buffer in model.named_buffers():
        if name.endswith("embed_sum"):
            buffer.normal_()
    path = tmp_path_factory.mktemp("mimi")
    model.save_pretrained(path)
    return str(path)


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(1, round(24_000 * seconds), generator=torch.Generator().manual_seed(seed))


def lens(audio: torch.Tensor) -> torch.Tensor:
    return torch.tensor([audio.shape[1]])


def test_one_codebook_is_the_first_of_mimi_itself(folder: str):
    audio = noise(1.6)  # 20 whole frames
    tokens, token_lens = MimiTokens(folder).tokenize(audio, lens(audio))
    model = MimiModel.from_pretrained(folder).eval()
    assert token_lens.tolist() == [20]
    assert torch.equal(tokens, model.encode(audio[:, None]).audio_codes[:, 0])
    assert len(tokens.unique()) > 3


def test_several_codebooks_follow_one_another_in_every_frame_with_ids_of_their_own(folder: str):
    audio = noise(1.6)
    tokenizer = MimiTokens(folder, codebooks=3)
    tokens, token_lens = tokenizer.tokenize(audio, lens(audio))
    codes = MimiModel.from_pretrained(folder).eval().encode(audio[:, None]).audio_codes[0]
    assert token_lens.tolist() == [60] and tokenizer.num_codes == 192 and tokenizer.clock.token_rate_hz == 37.5
    for k in range(3):
        assert torch.equal(tokens[0, k::3], 64 * k + codes[k])


@pytest.mark.parametrize("codebooks", [1, 3])
def test_tokens_depend_neither_on_the_batch_nor_on_what_pads_it(folder: str, codebooks: int):
    tokenizer = MimiTokens(folder, codebooks, window_seconds=2.0)
    sizes = torch.tensor([24_000 * 5 + 777, 1000, 50_001, 1])
    audio = noise(6.0)[:, : int(sizes.max())].repeat(4, 1)  # what lies behind an end is not silence
    tokens, token_lens = tokenizer.tokenize(audio, sizes)
    for row, size in enumerate(sizes.tolist()):
        alone, count = tokenizer.tokenize(audio[row : row + 1, :size], sizes[row : row + 1])
        assert count.tolist() == [token_lens[row]] == [codebooks * -(-size // 1920)]
        assert torch.equal(tokens[row, : token_lens[row]], alone[0])


def test_a_long_recording_is_its_windows_one_after_another(folder: str):
    audio, tokenizer = noise(5.0), MimiTokens(folder, window_seconds=2.0)
    whole, _ = tokenizer.tokenize(audio, lens(audio))
    parts = [tokenizer.tokenize(part, lens(part))[0] for part in audio.split(48_000, dim=1)]
    assert torch.equal(whole, torch.cat(parts, dim=1))


def test_mimi_tokenizes_a_corpus_of_another_sample_rate(folder: str, tmp_path: Path):
    manifest = make_corpus(tmp_path / "corpus", 6)
    mimi = {"class_path": "speechlm.nn.mimi.MimiTokens", "init_args": {"folder": folder, "codebooks": 2}}
    out = tokenized(tmp_path, manifest, tokenizer=mimi, making={"shard_size": 4})
    tokenizer = MimiTokens(folder, 2)
    header = TokenFolder.find(out).header
    assert (header.num_codes, header.clock.sample_rate_hz, header.clock.token_rate_hz) == (128, 24_000, 25.0)
    assert header.tokenizer_hash == tokenizer.hash
    for cut in read_token_cuts(out):
        audio = torch.from_numpy(load_recording(cut, tokenizer.clock))[None]
        expected = tokenizer.tokenize(audio, lens(audio))[0][0].numpy()
        assert np.array_equal(cut.speech_tokens.load(), expected)
        assert np.array_equal(tokens_of(cut), expected[: len(tokens_of(cut))])


def test_the_hash_follows_weights_and_settings_and_nothing_else(folder: str, tmp_path: Path):
    own = MimiTokens(folder).hash
    assert MimiTokens(folder).hash == own
    assert MimiTokens(folder, codebooks=2).hash != own
    assert MimiTokens(folder, window_seconds=2.0).hash != own
    for file in Path(folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights[next(name for name in weights if name.endswith("embed_sum"))][0, 0] += 1e-3
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert MimiTokens(str(tmp_path)).hash != own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebooks": 5}, "has 4 codebooks, 1 of them semantic"),
        ({"codebooks": 0}, "has 4 codebooks"),
        ({"window_seconds": 0.1}, "whole number of frames of 1920 samples"),
        ({"window_seconds": 0.0}, "whole number of frames"),
    ],
)
def test_what_mimi_does_not_have_is_refused(folder: str, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MimiTokens(folder, **settings)
