"""The cut base model, pooling and the embedded SAE."""

import pytest
import torch
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from sparserm_hf.modeling.backbone_sparserm import cut_base_model, decoder_of, residual_stream
from sparserm_hf.modeling.configuration_sparserm import SparseRMConfig
from sparserm_hf.modeling.pooling_sparserm import pool_representations, pooled_tokens
from tiny import ARCHITECTURES, LAYERS, tiny_causal_lm, tiny_reward_model, tiny_sae, tiny_texts
from torch import nn


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_the_cut_model_gives_the_residual_stream(architecture):
    """Layer by layer it equals the whole model's hidden states; the last one is what the final norm is given."""
    ids = torch.tensor([tiny_texts()[2]])
    whole = decoder_of(tiny_causal_lm(architecture))
    whole.set_attn_implementation("eager")  # Gemma 2 caps attention scores, which transformers 4 leaves out otherwise
    seen = {}
    norm = next(m for name, m in whole.named_children() if name in ("norm", "ln_f", "final_layer_norm"))
    norm.register_forward_pre_hook(lambda _, inputs: seen.update(last=inputs[0]))
    hidden = whole(ids, output_hidden_states=True, use_cache=False).hidden_states
    for layer in range(1, LAYERS + 1):
        cut = cut_base_model(tiny_causal_lm(architecture), layer)
        assert cut.config.num_hidden_layers == layer
        stream = residual_stream(cut, ids, torch.ones_like(ids))
        expected = hidden[layer] if layer < LAYERS else seen["last"]
        torch.testing.assert_close(stream, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [0, -1, LAYERS + 1])
def test_a_layer_out_of_range_is_refused(layer):
    with pytest.raises(ValueError, match=f"Layer {layer} is out of range: the base model has layers 1 to {LAYERS}"):
        cut_base_model(tiny_causal_lm(), layer)


def test_an_unknown_architecture_is_told_what_was_looked_for():
    model = tiny_causal_lm()
    decoder = model.get_decoder()
    decoder.more = nn.ModuleList(list(decoder.layers))
    with pytest.raises(ValueError, match="looked for one list of 4 decoder layers and found layers, more"):
        cut_base_model(model, 2)


def test_pooled_tokens_by_hand():
    """Two texts, the second padded on the left; the first attended token is the sink and never pooled."""
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])
    expected = {"last": [[5], [6]], "mean": [[1, 2, 3, 4, 5], [3, 4, 5, 6]], "response_mean": [[4, 5], [5, 6]]}
    for pooling, positions in expected.items():
        pooled = pooled_tokens(mask, [(4, 6), (3, 5)], pooling)  # where the response is, padding not counted
        assert [row.nonzero()[:, 0].tolist() for row in pooled] == positions
        assert not pooled_tokens(mask, [(3, 3), (0, 0)], pooling).any(), "an empty response has no tokens"
        alone = pooled_tokens(torch.eye(7)[:2].long(), [(0, 1), (0, 1)], pooling)
        assert not alone.any(), "one token: nothing but the sink"


def test_pooling_by_hand_and_a_sink_inside_the_text_does_not_dominate():
    """Under rms a token of norm 17,000 weighs as much as any other; an infinity in the padding weighs nothing."""
    hidden = torch.tensor([[[9.0, 9.0], [1.0, -1.0], [17_000.0, 17_000.0], [float("inf"), 0.0]]])
    pooled = torch.tensor([[False, True, True, False]])
    torch.testing.assert_close(pool_representations(hidden, pooled, "rms"), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(pool_representations(hidden, pooled, "none"), torch.tensor([[8500.5, 8499.5]]))
    assert torch.equal(pool_representations(hidden, pooled & False, "rms"), torch.zeros(1, 2))


ENCODE_REFERENCES = {
    "standard": lambda s, h: torch.relu(h + s.b_enc),
    "jumprelu": lambda s, h: torch.where(h + s.b_enc > s.threshold, torch.relu(h + s.b_enc), 0.0),
    "gated": lambda s, h: torch.where(h + s.b_gate > 0, torch.relu(h * s.r_mag.exp() + s.b_mag), 0.0),
}


@pytest.mark.parametrize("architecture", ENCODE_REFERENCES)
def test_encoding_equals_a_plain_reference(architecture):
    sae = tiny_sae(architecture, normalization="constant_norm_rescale")
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0)) * 30
    h = (x * 32**0.5 / x.norm(dim=-1, keepdim=True) - sae.b_dec) @ sae.W_enc
    torch.testing.assert_close(sae.encode(x), ENCODE_REFERENCES[architecture](sae, h))
    empty = SparseAutoencoder(**sae.spec())
    empty.load_state_dict(sae.state_dict())
    torch.testing.assert_close(empty.encode(x), sae.encode(x))


def test_a_topk_sae_needs_k():
    for k in (None, 0, 65):
        with pytest.raises(ValueError, match="needs k between 1 and 64"):
            SparseAutoencoder(32, 64, "topk", k=k)


def test_configuration_refuses_what_it_does_not_know():
    for name in ("pooling", "representation_norm", "directions", "head_type"):
        with pytest.raises(ValueError, match=f"{name} is 'nonsense', but must be one of"):
            SparseRMConfig(**{name: "nonsense"})


def test_a_checkpoint_that_reads_activations_is_refused_and_one_of_projections_is_not():
    """Of the claims that were made of activations, a tenth held: they left the model with version 0.3."""
    with pytest.raises(ValueError, match=r"trained before version 0\.3 with mean_projection, max_activation"):
        SparseRMConfig(readings=["mean_projection", "max_activation"])
    config = SparseRMConfig(readings=["mean_projection"])
    assert config.directions == "raw" and "readings" not in config.to_dict()


def test_the_linear_reward_is_the_exact_sum_of_its_features():
    model = tiny_reward_model()
    ids = torch.tensor([tiny_texts()[0]])
    mask = torch.ones_like(ids)
    features = model.extract_features(ids, mask)
    assert features.shape == (1, 6)
    parts = features * model.score.weight
    torch.testing.assert_close(model(ids, mask).logits, parts.sum(-1, keepdim=True) + model.score.bias)


def test_steering_moves_a_latent_towards_its_mean_and_survives_a_reload(tmp_path):
    model = tiny_reward_model()
    ids = torch.tensor([tiny_texts()[0]])
    plain = model.extract_features(ids, torch.ones_like(ids))
    model.steer({8: 0.0, 40: 2.0})  # the third and fourth of the six selected latents
    model.save_pretrained(tmp_path)
    for candidate in (model, type(model).from_pretrained(tmp_path)):
        steered = candidate.extract_features(ids, torch.ones_like(ids))
        mean = candidate.feature_mean
        torch.testing.assert_close(steered[:, 2], mean[None, 2])
        torch.testing.assert_close(steered[:, 3] - mean[3], 2 * (plain[:, 3] - mean[3]))
        torch.testing.assert_close(steered[:, [0, 1, 4, 5]], plain[:, [0, 1, 4, 5]])


def test_only_the_head_learns_and_its_gradient_does_not_reach_the_base():
    model = tiny_reward_model(head_type="mlp").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ids = torch.tensor([tiny_texts()[0]])
    model(ids, torch.ones_like(ids)).logits.sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("score.") for name in changed)
    assert isinstance(model.model.norm, nn.Identity)
