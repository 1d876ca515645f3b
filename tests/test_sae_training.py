"""An SAE trained with sae-lens on a tiny model: it learns, and it can be read by everyone."""

import json

import pytest
import torch
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from tiny import BOS, VOCAB, tiny_causal_lm

from sparserm_hf.sae.formats import load_sae
from sparserm_hf.sae.training import SAETrainingConfig, measure_sae, residual_tokens, train_sae

sae_lens = pytest.importorskip("sae_lens")

METADATA = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"}


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(0)
    return [[BOS, *torch.randint(6, VOCAB, (30,), generator=generator).tolist()] for _ in range(200)]


def test_it_learns_and_equals_what_sae_lens_reads(texts, tmp_path):
    base_model = cut_base_model(tiny_causal_lm(), 2)
    settings = {"d_sae": 128, "k": 8, "batch_tokens": 256, "buffer_tokens": 2048, "learning_rate": 3e-3}
    short = SAETrainingConfig(total_tokens=256, **settings)
    untrained = train_sae(base_model, texts, tmp_path / "short", short, METADATA)
    quality = train_sae(
        base_model, texts, tmp_path / "long", SAETrainingConfig(total_tokens=100_000, **settings), METADATA
    )
    unexplained = "fraction_of_variance_unexplained"
    assert quality[unexplained] < 0.6 * untrained[unexplained] and 4 < quality["l0"] < 16
    loaded = load_sae(str(tmp_path / "long"))
    reference = sae_lens.SAE.load_from_disk(tmp_path / "long", dtype="float32")
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)) * 9
    with torch.no_grad():
        torch.testing.assert_close(loaded.autoencoder.encode(x), reference.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded.autoencoder(x), reference(x), rtol=1e-5, atol=1e-4)
    assert loaded.layer == 2 and loaded.autoencoder.architecture == "jumprelu"
    metadata = json.loads((tmp_path / "long" / "cfg.json").read_text())["metadata"]
    assert metadata["tokens_trained_on"] == 99_840 and metadata[unexplained] == quality[unexplained]


def test_sinks_stay_out_and_every_token_has_the_same_norm(texts):
    """Left in, sinks are nearly all of the variance: explained variance looks perfect, and little else is learnt."""
    base_model = cut_base_model(tiny_causal_lm(), 2)
    base_model.layers[1].register_forward_hook(
        lambda m, i, o: o * torch.where(torch.arange(o.shape[1]) == 5, 100.0, 1.0)[:, None]
    )
    tokens = next(residual_tokens(base_model, texts, sink_ratio=3.0, seed=0, max_tokens=310))
    assert len(tokens) == 10 * (31 - 2), "of each text of 31 tokens the first and the sink in the middle are left out"
    torch.testing.assert_close(tokens.norm(dim=-1), torch.full((len(tokens),), 32**0.5))


def test_quality_by_hand():
    class Half(torch.nn.Module):
        def encode(self, x):
            return torch.stack([x[:, 0].relu(), x[:, 0] * 0, -x[:, 0].clamp(max=0)], dim=-1)

        def forward(self, x):
            return x / 2

    quality = measure_sae(Half(), torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))
    assert quality == pytest.approx({"l0": 1.0, "fraction_of_variance_unexplained": 0.25, "dead_share": 1 / 3})


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": 200, "d_sae": 100}, {"total_tokens": 10}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValueError):
        SAETrainingConfig(**settings)
