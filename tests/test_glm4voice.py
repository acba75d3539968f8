"""What the released code computes from tiny weights in its form, we compute too; what we write is what it wrote."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.glm4voice import is_released, load_tokenizer, ours, read_config, theirs
from speechlm.nn.glm4voice_export import save_tokenizer, why_not
from speechlm.nn.lookup_free import FSQ
from speechlm.nn.masks import length_mask
from speechlm.nn.released_vq import ReleasedVQ
from speechlm.nn.whisper_encoder import Bottleneck
from speechlm.nn.whisper_vq import WhisperVQ
from speechlm.tokenizers import Glm4VoiceTokens
from speechlm.tokens.clock import Clock
from tests.tiny_whisper import make_tiny_whisper

GOLDEN = Path(__file__).parent / "golden" / "glm4voice_tokenizer"
RELEASED = Bottleneck(after_layer=2, block_sec=0.16, second_positions="first", padded_end="masked")


def released_vq(dim: int) -> ReleasedVQ:
    return ReleasedVQ(dim, 64)


def from_golden(quantizer=released_vq, bottleneck: Bottleneck = RELEASED, rate: float = 12.5) -> WhisperVQ:
    return WhisperVQ(str(GOLDEN), Clock(token_rate_hz=rate), bottleneck, quantizer, bare_prompt=True)


def golden_codes(encoder: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of the golden input, ours and the released code's, where there is audio."""
    expected = load_file(GOLDEN / "expected.safetensors")
    with torch.no_grad():
        encoded = encoder.eval()(expected["input_features"], expected["attention_mask"].sum(dim=1))
    real = length_mask(encoded.state_lens, encoded.states.shape[1])
    return encoded.quantized.codes[real], expected["quantized_token_ids"][real]


def test_released_weights_give_the_released_codes_states_and_logits():
    encoder, decoder = (part.eval() for part in load_tokenizer(GOLDEN))
    expected = load_file(GOLDEN / "expected.safetensors")
    with torch.no_grad():
        encoded = encoder(expected["input_features"], expected["attention_mask"].sum(dim=1))
        logits = decoder.logits(decoder(expected["decoder_input_ids"], encoded.states, encoded.state_lens))
    real = length_mask(encoded.state_lens, encoded.states.shape[1])
    assert torch.equal(encoded.quantized.codes[real], expected["quantized_token_ids"][real])
    torch.testing.assert_close(encoded.states[real], expected["last_hidden_state"][real], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("released_update", [False, True])
def test_released_training_steps_give_the_released_codebook(released_update: bool):
    encoder = (from_golden() if released_update else from_golden(lambda d: EmaVQ(d, 64, init="random"))).encoder
    encoder.train()
    expected = load_file(GOLDEN / "expected_ema.safetensors")
    for step in range(3):
        mask = expected[f"step{step}.attention_mask"]
        with torch.no_grad():
            quantized = encoder(expected[f"step{step}.input_features"], mask.sum(dim=1)).quantized
        if not released_update:
            encoder.quantizer.update()
        real = mask[:, ::2][:, ::4].bool()
        assert torch.equal(quantized.codes[real], expected[f"step{step}.ids"][real])
        torch.testing.assert_close(quantized.loss, expected[f"step{step}.quantize_loss"][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(encoder.quantizer.codebook, expected[f"step{step}.codebook"], atol=1e-4, rtol=0)
        torch.testing.assert_close(encoder.quantizer.ema_count, expected[f"step{step}.ema_count"], atol=1e-4, rtol=0)


def test_names_survive_the_way_there_and_back():
    state = load_file(GOLDEN / "model.safetensors")
    encoder = {name: value for name, value in state.items() if name.startswith("model.encoder.")}
    assert theirs(ours(state)).keys() == encoder.keys()


# -- in: training starts from a folder ---------------------------------------------------------------------------------


def test_training_starts_from_the_released_codes():
    codes, expected = golden_codes(from_golden().encoder)
    assert torch.equal(codes, expected)


def test_a_released_codebook_is_not_made_anew():
    model = from_golden(lambda dim: EmaVQ(dim, 64, init="kmeans", init_updates=50, ramp_updates=20))
    codes, expected = golden_codes(model.encoder)
    assert torch.equal(codes, expected)
    quantizer = model.encoder.train().quantizer
    for _ in range(3):
        quantizer(torch.randn(2, 30, 32), torch.ones(2, 30, dtype=torch.bool))
        quantizer.update()
    moved = (quantizer.codebook - load_file(GOLDEN / "model.safetensors")["model.encoder.codebook.weight"]).abs()
    assert 0 < moved.max() and moved.median() < 0.3  # averages move; k-means would have replaced every code
    assert not len(quantizer.pool)


def test_weights_in_shards_are_read(tmp_path: Path):
    state = load_file(GOLDEN / "model.safetensors")
    halves = [
        {n: v for n, v in state.items() if n.startswith("model.decoder.") == decoder} for decoder in (True, False)
    ]
    for number, half in enumerate(halves, 1):
        save_file(half, tmp_path / f"model-0000{number}-of-00002.safetensors")
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    codes, expected = golden_codes(load_tokenizer(tmp_path)[0])
    assert torch.equal(codes, expected)


def test_settings_that_are_not_the_folders_are_named():
    with pytest.raises(ValueError, match="differs from it") as refused:
        from_golden(lambda dim: ReleasedVQ(dim, 32), Bottleneck(after_layer=1), rate=25.0)
    for line in (
        "clock.token_rate_hz: 25.0, in the folder 12.5",
        "bottleneck.after_layer: 1, in the folder 2",
        "bottleneck.block_sec: 4.0, in the folder 0.16",
        "bottleneck.second_positions: 'moved', in the folder 'first'",
        "bottleneck.padded_end: 'heard', in the folder 'masked'",
        "quantizer.num_codes: 32, in the folder 64",
    ):
        assert line in str(refused.value)


def test_another_quantizer_than_the_released_kind_does_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        from_golden(lambda dim: FSQ(dim, levels=[8, 8]))


def test_a_folder_without_weights_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        load_tokenizer(tmp_path)


# -- out ---------------------------------------------------------------------------------------------------------------


def test_saving_what_was_loaded_gives_the_released_bytes(tmp_path: Path):
    for folder in (tmp_path / "once", tmp_path / "twice"):
        model = (
            from_golden()
            if folder.name == "once"
            else WhisperVQ(str(tmp_path / "once"), Clock(), RELEASED, released_vq, bare_prompt=True)
        )
        save_tokenizer(model, str(GOLDEN) if folder.name == "once" else str(tmp_path / "once"), folder)
        for name in ("model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json"):
            assert (folder / name).read_bytes() == (GOLDEN / name).read_bytes(), name
    codes, expected = golden_codes(load_tokenizer(tmp_path / "twice")[0])
    assert torch.equal(codes, expected)


def test_a_trained_codebook_goes_out_and_comes_in(tmp_path: Path):
    model = from_golden()
    model.encoder.train()
    step = load_file(GOLDEN / "expected_ema.safetensors")
    with torch.no_grad():
        model.encoder(step["step0.input_features"], step["step0.attention_mask"].sum(dim=1))
    save_tokenizer(model, str(GOLDEN), tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(written["model.encoder.codebook.weight"], step["step0.codebook"], atol=1e-4, rtol=0)
    torch.testing.assert_close(written["model.encoder.ema_count"], step["step0.ema_count"], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_whisper(tmp_path_factory.mktemp("whisper")))


def grown(plain: str, quantizer=lambda dim: EmaVQ(dim, 16, init="random", commitment=10.0), **settings) -> WhisperVQ:
    """A model that began as a plain Whisper."""
    bottleneck = Bottleneck(**{"block_sec": 2.0, "second_positions": "first", "padded_end": "masked", **settings})
    return WhisperVQ(plain, Clock(), bottleneck, quantizer).eval()


def test_a_model_grown_from_a_plain_whisper_is_read_as_a_released_one(plain: str, tmp_path: Path):
    model = grown(plain)
    save_tokenizer(model, plain, tmp_path)
    assert is_released(tmp_path) and not is_released(plain)
    assert read_config(tmp_path).keys() == read_config(GOLDEN).keys()
    again = WhisperVQ(str(tmp_path), Clock(), model.encoder.bottleneck, lambda d: ReleasedVQ(d, 16))
    audio = 0.1 * torch.randn(2, 30_000, generator=torch.Generator().manual_seed(0))
    lens = torch.tensor([30_000, 17_000])
    torch.testing.assert_close(again.eval().tokenize(audio, lens), model.tokenize(audio, lens), atol=0, rtol=0)
    assert len(model.tokenize(audio, lens)[0].unique()) > 2
    assert load_tokenizer(tmp_path)[0].quantizer.commitment == 10.0


def test_exported_config_states_what_was_trained(plain: str, tmp_path: Path):
    save_tokenizer(grown(plain, causal_convs=False, block_sec=None), plain, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["WhisperVQForConditionalGeneration"]
    assert (config["encoder_causal_convolution"], config["quantize_causal_block_size"]) == (False, None)
    assert (config["pooling_kernel_size"], config["quantize_vocab_size"], config["d_model"]) == (4, 16, 16)
    assert config["quantize_loss_scale"] * config["quantize_commit_coefficient"] == 10.0
    assert config["skip_language_detection"] is False


@pytest.mark.parametrize(
    ("quantizer", "settings", "reason"),
    [
        (lambda dim: EmaVQ(dim, 16, init="random"), {"second_positions": "moved"}, "second_positions"),
        (lambda dim: EmaVQ(dim, 16, init="random"), {"padded_end": "heard"}, "padded_end"),
        (lambda dim: EmaVQ(dim, 16, init="random"), {"after_layer": 2, "pool_after": 1}, "pools after layer 1"),
        (lambda dim: EmaVQ(dim, 16), {}, "has not been made yet"),
        (lambda dim: FSQ(dim, levels=[4, 4]), {}, "FSQ"),
        (None, {}, "no quantizer"),
    ],
)
def test_what_the_released_code_can_not_compute_is_refused(plain: str, tmp_path: Path, quantizer, settings, reason):
    with pytest.raises(ValueError, match=reason):
        save_tokenizer(grown(plain, quantizer, **settings), plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_features_than_the_released_are_refused(plain: str):
    model = WhisperVQ(plain, Clock(), RELEASED, lambda d: EmaVQ(d, 16, init="random"), floor="running")
    assert any("floor: running" in reason for reason in why_not(model))


def test_recordings_give_the_released_tokens_whatever_they_are_batched_with():
    expected = load_file(GOLDEN / "expected_audio.safetensors")
    rows = [expected[f"audio{i}"] for i in range(5)]
    tokens, lens = Glm4VoiceTokens(str(GOLDEN)).tokenize(
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])
    )
    assert [row[:n].tolist() for row, n in zip(tokens, lens, strict=True)] == [
        expected[f"ids{i}"].tolist() for i in range(5)
    ]
