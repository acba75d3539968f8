"""A language model with a larger vocabulary is the old one on text, and a plain one for everybody else."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from speechlm.nn.causal_lm import NewRows, blocks, extend_vocabulary, load_causal_lm
from tests.tiny_lm import CONFIGS, write_lm_config

TEXT, SIZE = 60, 96


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize("kind", CONFIGS)
def test_text_is_predicted_as_before_and_a_tied_head_stays_tied(kind: str, tied: bool, tmp_path: Path):
    model = load_causal_lm(write_lm_config(tmp_path, kind, tied), from_scratch=True).eval()
    ids = torch.randint(TEXT, (2, 9), generator=torch.Generator().manual_seed(0))
    before = model(ids).logits[..., :TEXT]
    extend_vocabulary(model, TEXT, SIZE, NewRows(pad_to=25))
    torch.testing.assert_close(model(ids).logits[..., :TEXT], before, rtol=0, atol=0)
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] == model.get_output_embeddings().weight.shape[0] == model.config.vocab_size == 100
    assert (rows.data_ptr() == model.get_output_embeddings().weight.data_ptr()) is tied
    assert len(blocks(model)) == 2


def test_a_saved_model_is_plain(tied: bool, tmp_path: Path):
    model = load_causal_lm(write_lm_config(tmp_path / "from", "qwen3", tied), from_scratch=True).eval()
    extend_vocabulary(model, TEXT, SIZE, NewRows())
    model.save_pretrained(tmp_path / "to")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "to")
    assert type(again) is type(model)
    ids = torch.arange(SIZE)[None]
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)


def new_and_old(form: str, tmp_path: Path, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    config = write_lm_config(tmp_path, hidden_size=8, head_dim=2, vocab_size=2000)
    model = load_causal_lm(config, from_scratch=True)
    with torch.no_grad():  # correlated, and far from zero
        rows = model.get_input_embeddings().weight
        rows.copy_(rows @ torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) + 3.0)
    extend_vocabulary(model, 1500, 6000, NewRows(form=form, **settings))  # type: ignore[arg-type]
    return rows.new_tensor(model.get_input_embeddings().weight[1500:].tolist()), rows[:1500].detach()


def test_rows_drawn_from_the_covariance_have_it(tmp_path: Path):
    new, old = new_and_old("covariance", tmp_path)
    torch.testing.assert_close(new.mean(0), old.mean(0), rtol=0.02, atol=0.05)
    torch.testing.assert_close(new.T.cov(), old.T.cov(), rtol=0.15, atol=0.1)


def test_rows_about_the_mean_are_as_far_from_it_as_was_said(tmp_path: Path):
    new, old = new_and_old("mean", tmp_path, noise=0.5)
    torch.testing.assert_close(new.mean(0), old.mean(0), rtol=0.02, atol=0.05)
    torch.testing.assert_close(new.std(0), 0.5 * old.std(0), rtol=0.05, atol=0.0)
    new, old = new_and_old("mean", tmp_path, noise=0.0)
    torch.testing.assert_close(new, old.mean(0).expand_as(new))


def test_copied_rows_are_rows_of_text(tmp_path: Path):
    new, old = new_and_old("copy", tmp_path)
    assert set(map(tuple, new.tolist())) <= set(map(tuple, old.tolist()))
    assert len(new.unique(dim=0)) > 1000


def test_kept_rows_are_kept(tmp_path: Path):
    model = load_causal_lm(write_lm_config(tmp_path), from_scratch=True)
    before = model.get_input_embeddings().weight.clone()
    extend_vocabulary(model, 40, 64, NewRows(form="keep"))
    assert torch.equal(model.get_input_embeddings().weight, before)
    with pytest.raises(ValueError, match=r"has 64 embeddings, the vocabulary 65 ids .*keep"):
        extend_vocabulary(model, 40, 65, NewRows(form="keep"))


def test_padding_of_the_checkpoint_is_no_text(tmp_path: Path):
    """Checkpoints have more rows than their tokenizer has ids; what stands there was never trained."""
    model = load_causal_lm(write_lm_config(tmp_path, vocab_size=200), from_scratch=True)
    before = model.get_input_embeddings().weight.clone()
    extend_vocabulary(model, TEXT, SIZE, NewRows())
    after = model.get_input_embeddings().weight
    assert len(after) == 200 and torch.equal(after[:TEXT], before[:TEXT])
    assert (after[TEXT:] != before[TEXT:]).all()


def test_a_vocabulary_of_another_text_tokenizer_is_refused(tmp_path: Path):
    model = load_causal_lm(write_lm_config(tmp_path), from_scratch=True)
    with pytest.raises(
        ValueError, match=r"has 64 embeddings, the vocabulary 65 ids .*text tokenizer is not this model's"
    ):
        extend_vocabulary(model, 65, 90, NewRows())


def test_the_same_seed_makes_the_same_model(tmp_path: Path):
    config = write_lm_config(tmp_path)
    torch.manual_seed(5)
    first = load_causal_lm(config, from_scratch=True, seed=1)
    state = torch.get_rng_state()
    second = load_causal_lm(config, from_scratch=True, seed=1)
    other = load_causal_lm(config, from_scratch=True, seed=2)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_that_does_more_than_multiply_is_refused(tmp_path: Path):
    Gemma2Config(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                 num_key_value_heads=1, head_dim=8).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        load_causal_lm(str(tmp_path), from_scratch=True)


@pytest.mark.parametrize("wrong", [{"form": "zero"}, {"noise": -1.0}, {"pad_to": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict):
    with pytest.raises(ValueError, match="new_rows"):
        NewRows(**wrong)
