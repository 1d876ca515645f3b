"""The sparse autoencoder (SAE) that a SparseRM model carries: it normalises its input, encodes and decodes."""

import torch
from torch import nn

ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
NORMALIZATIONS = ("none", "constant_norm_rescale", "layer_norm")


class SparseAutoencoder(nn.Module):
    """An inference-only SAE: latents ``f = encode(x)``, reconstruction ``forward(x)``.

    The weights are buffers, not parameters, as nothing trains them. Formulas and buffer names are those of sae-lens 6,
    which stores BatchTopK and Matryoshka SAEs as ``jumprelu``.

    Args:
        d_in: Width of the residual stream.
        d_sae: Number of latents.
        architecture: One of ``ARCHITECTURES``.
        k: Number of latents that may fire on one token; for ``topk`` only.
        normalization: Normalisation of the input, one of ``NORMALIZATIONS``.
        apply_b_dec_to_input: Whether to subtract the decoder bias from the input before encoding.
        rescale_acts_by_decoder_norm: Whether ``topk`` ranks activations times the norms of their decoder rows.

    Raises:
        ValueError: The architecture or normalisation is unknown, or ``topk`` has no usable ``k``.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        architecture: str = "standard",
        k: int | None = None,
        normalization: str = "none",
        apply_b_dec_to_input: bool = True,
        rescale_acts_by_decoder_norm: bool = False,
    ):
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"SAE architecture {architecture!r} is not one of {', '.join(ARCHITECTURES)}.")
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"SAE normalisation {normalization!r} is not one of {', '.join(NORMALIZATIONS)}; "
                "fold it into the weights first."
            )
        if architecture == "topk" and not (k and 0 < k <= d_sae):
            raise ValueError(f"A topk SAE with {d_sae} latents needs k between 1 and {d_sae}, but k is {k}.")
        self.d_in = d_in
        self.d_sae = d_sae
        self.architecture = architecture
        self.k = k
        self.normalization = normalization
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.rescale_acts_by_decoder_norm = rescale_acts_by_decoder_norm
        shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        for name, shape in (shapes | dict.fromkeys(self.bias_names, (d_sae,))).items():
            # In float32 even if transformers builds the model in bfloat16.
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32))

    @property
    def bias_names(self) -> tuple[str, ...]:
        """Names of the (d_sae,) tensors of this architecture; every architecture also has W_enc, W_dec and b_dec."""
        if self.architecture == "gated":
            return ("b_gate", "b_mag", "r_mag")
        return ("b_enc", "threshold") if self.architecture == "jumprelu" else ("b_enc",)

    def normalize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Normalise x (..., d_in); return it with the (..., 1) scale and shift that undo the normalisation."""
        if self.normalization == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            return x / scale, scale, torch.zeros_like(scale)
        if self.normalization == "layer_norm":
            # Not F.layer_norm: sae-lens divides by the unbiased standard deviation plus 1e-5.
            shift = x.mean(dim=-1, keepdim=True)
            scale = x.std(dim=-1, keepdim=True)
            return (x - shift) / (scale + 1e-5), scale, shift
        ones = x.new_ones(*x.shape[:-1], 1)
        return x, ones, torch.zeros_like(ones)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the latent activations (..., d_sae), none below zero, of residual-stream tokens x (..., d_in)."""
        x = self.normalize(x.to(self.W_enc.dtype))[0]
        if self.apply_b_dec_to_input:
            x = x - self.b_dec
        if self.architecture == "gated":
            magnitude = torch.relu(x @ (self.W_enc * self.r_mag.exp()) + self.b_mag)
            return magnitude * (x @ self.W_enc + self.b_gate > 0)
        h = x @ self.W_enc + self.b_enc
        if self.architecture == "jumprelu":
            return torch.relu(h) * (h > self.threshold)
        if self.architecture == "topk":
            if self.rescale_acts_by_decoder_norm:
                h = h * self.W_dec.norm(dim=-1)
            values, winners = h.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(h).scatter_(-1, winners, values.relu())
        return torch.relu(h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct x (..., d_in) from its latents."""
        return self.decode(self.encode(x), x)

    def decode(self, f: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct x (..., d_in) from its latents f (..., d_sae); x gives only the scale and shift."""
        _, scale, shift = self.normalize(x.to(self.W_enc.dtype))
        if self.rescale_acts_by_decoder_norm:
            f = f / self.W_dec.norm(dim=-1)
        return (f @ self.W_dec + self.b_dec) * scale + shift

    def spec(self) -> dict[str, int | str | bool | None]:
        """Return the arguments that make an empty SAE of this shape, for `SparseRMConfig.sae`."""
        return {
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "architecture": self.architecture,
            "k": self.k,
            "normalization": self.normalization,
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "rescale_acts_by_decoder_norm": self.rescale_acts_by_decoder_norm,
        }
