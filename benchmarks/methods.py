"""The methods that the scripts beside this one compare, on representations that `layers.py` keeps.

A method says what a head reads. It is given the pairs that may be looked at, so that whatever it selects is selected
inside each fold of the cross-validation, and never by test pairs.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from layers import Texts
from scipy import sparse
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder

from sparserm_hf.conversations.tokenized_preferences import TokenizedPreferences
from sparserm_hf.evaluation.metrics import pair_credits, pair_metrics, paired_difference
from sparserm_hf.representations.shards import Representations
from sparserm_hf.training.directions import make_directions, random_directions
from sparserm_hf.training.folds import FOLDS, group_folds, pairs_outside
from sparserm_hf.training.linear_head import fit_linear_head
from sparserm_hf.training.mlp_head import fit_mlp_head
from sparserm_hf.training.objective import FittedHead, Objective, PairFeatures
from sparserm_hf.training.selection import K_CANDIDATES, fewest_latents, select_latents

K = 128
READINGS = ("mean_projection", "last_projection", "mean_activation", "max_activation")  # of a latent


@dataclass(frozen=True)
class Data:
    """Represented pairs, for one layer and pooling.

    Attributes:
        texts: Representations of N texts.
        lengths: (N,) tokens of each.
        chosen: (P,) numbers of the chosen texts.
        rejected: (P,) numbers of the rejected ones.
        groups: (P,) number of each pair's prompt.
    """

    texts: Representations
    lengths: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    groups: np.ndarray

    def first(self, count: int) -> "Data":
        """The first pairs."""
        return replace(self, chosen=self.chosen[:count], rejected=self.rejected[:count], groups=self.groups[:count])

    def with_noise(self, share: float, seed: int) -> "Data":
        """A share of the pairs turned round."""
        turned = np.zeros(len(self.chosen), dtype=bool)
        turned[np.random.default_rng(seed).permutation(len(turned))[: round(share * len(turned))]] = True
        chosen, rejected = np.where(turned, (self.rejected, self.chosen), (self.chosen, self.rejected))
        return replace(self, chosen=chosen, rejected=rejected)


@dataclass(frozen=True)
class InMemory:
    """All texts as one `Shard`, without the activations of single tokens, but with the `last` token of each."""

    mean: np.ndarray
    last: np.ndarray
    mean_activation: sparse.csr_matrix
    max_activation: sparse.csr_matrix


def data_of(texts: Representations, pairs: TokenizedPreferences) -> Data:
    """Pairs and the representations of their texts."""
    sides = (np.array(numbers) for numbers in (pairs.chosen, pairs.rejected, pairs.groups))
    return Data(texts, pairs.lengths, *sides)


def data_at(texts: Texts, layer: int, pooling: str = "response_mean") -> Data:
    """The represented pairs at one layer; without an SAE there, there are no activations."""
    mean, last = texts.pooled[pooling][layer - 1], texts.pooled["last"][layer - 1]
    nothing = sparse.csr_matrix((len(mean), 0), dtype=np.float32)
    activations = (texts.activations.get((layer, how), nothing) for how in ("mean", "max"))
    return data_of(Representations([InMemory(mean, last, *activations)], np.arange(len(mean))), texts.pairs)


def with_last(texts: Representations, last: Representations) -> Representations:
    """The package's representations of texts, with those of the same texts that pool the last token beside them."""
    mean, of_last = dense(texts, "mean"), dense(last, "mean")
    shard = InMemory(mean, of_last, *(activations(texts, reading) for reading in READINGS[2:]))
    return Representations([shard], np.arange(len(mean)))


def dense(texts: Representations, *poolings: str) -> np.ndarray:
    """(N, poolings x d_model) representations side by side, in float64."""
    return texts.read(lambda shard: np.concatenate([getattr(shard, name) for name in poolings], 1).astype(np.float64))


def activations(texts: Representations, reading: str) -> sparse.csr_matrix:
    """(N, d_sae) `mean_activation` or `max_activation` of all latents."""
    return sparse.vstack([getattr(shard, reading) for shard in texts.shards], "csr")[np.argsort(texts.order)]


Reader = Callable[[Data], np.ndarray]  # (N, F) features of all texts
Method = Callable[[Data, np.ndarray, int], Reader]  # from data, the pairs that may be looked at, and a seed


def directions_for(data: Data, given: np.ndarray, kind: str, pooling: str = "mean") -> np.ndarray:
    """(K, d_model) directions that the package makes of given ones, from the average over the texts of all pairs."""
    texts = np.unique([data.chosen, data.rejected])
    return make_directions(given, kind, dense(data.texts, pooling)[texts].mean(0)).rows


def read_features(data: Data, readings: dict[str, np.ndarray], decoder: np.ndarray, directions: str) -> Reader:
    """Features of latents, (N, F) in float64: the readings side by side.

    The package's model reads projections alone. Activations, and projections of the last token beside those of the
    mean, are controls.

    Args:
        data: What directions are made from.
        readings: Some of `READINGS`, each with the (K,) ids of the latents that it is read of.
        decoder: (d_sae, d_model) decoder directions of all latents.
        directions: `orthogonal` or `raw`.
    """
    poolings = {name: name.removesuffix("_projection") for name in readings if name.endswith("projection")}
    made = {
        name: directions_for(data, decoder[readings[name]], directions, pooling) for name, pooling in poolings.items()
    }

    def read(other: Data) -> np.ndarray:
        features = []
        for name, latents in readings.items():
            if name in poolings:
                features.append(dense(other.texts, poolings[name]) @ made[name].T)
            else:
                features.append(activations(other.texts, name)[:, latents].toarray().astype(np.float64))
        return np.concatenate(features, axis=1)

    return read


def selected(
    sae: SparseAutoencoder, readings: Sequence[str] = READINGS[:1], k: int = K, directions: str = "orthogonal"
) -> Method:
    """SparseRM: what is read of the latents that fire more on one side; by default what the package's model reads."""
    decoder = sae.W_dec.double().numpy()

    def method(data: Data, train: np.ndarray, seed: int) -> Reader:
        counts = data.texts.count_firing(data.chosen[train], data.rejected[train])
        latents = select_latents(*counts, len(train), k).latents
        return read_features(data, dict.fromkeys(readings, latents), decoder, directions)

    return method


def chosen(sae: SparseAutoencoder) -> Method:
    """SparseRM by default: as few latents as the pairs ask for, by the cross-validated accuracy of a linear head."""
    numbers: dict[tuple[int, int], int] = {}

    def method(data: Data, pairs: np.ndarray, seed: int) -> Reader:
        if (key := (id(data), seed)) not in numbers:
            heads = {k: train(selected(sae, k=k), data, seed).head for k in K_CANDIDATES}
            accuracies = {k: head.validation_accuracy or 0.5 for k, head in heads.items()}
            numbers[key] = fewest_latents(accuracies, len(data.chosen))
        return selected(sae, k=numbers[key])(data, pairs, seed)

    return method


def selected_by_effect(sae: SparseAutoencoder, readings: Sequence[str] = READINGS, k: int = K) -> Method:
    """Not in the package: the 2K latents and readings whose paired differences have the largest effect.

    The effect is the mean over the standard deviation, the paired t statistic over sqrt(N). The K largest and the K
    smallest over all readings at once: 2K features. Projections are on the decoder directions as they are.
    """
    decoder = sae.W_dec.double().numpy()

    def method(data: Data, train: np.ndarray, seed: int) -> Reader:
        chosen, rejected = data.chosen[train], data.rejected[train]
        effects = []
        for reading in readings:
            if reading.endswith("projection"):
                z = dense(data.texts, reading.removesuffix("_projection"))
                differences = (z[chosen] - z[rejected]) @ decoder.T
                mean, square = differences.mean(0), (differences**2).mean(0)
            else:
                f = activations(data.texts, reading)
                sparse_differences = f[chosen] - f[rejected]
                mean = np.asarray(sparse_differences.mean(0)).ravel()
                square = np.asarray(sparse_differences.multiply(sparse_differences).mean(0)).ravel()
            deviation = np.sqrt(np.maximum(square - mean**2, 0))
            effects.append(np.divide(mean, deviation, out=np.zeros_like(mean), where=deviation > 1e-8))
        order = np.argsort(-np.concatenate(effects), kind="stable")
        picked = np.concatenate([order[:k], order[-k:]])
        parts = [picked[picked // sae.d_sae == i] % sae.d_sae for i in range(len(readings))]
        return read_features(data, dict(zip(readings, parts, strict=True)), decoder, "raw")

    return method


def representation(*poolings: str) -> Method:
    """The dense representation."""
    return lambda data, train, seed: lambda other: dense(other.texts, *poolings)


def random(data: Data, train: np.ndarray, seed: int) -> Reader:
    """Projections on random directions, made orthogonal as those of SparseRM are."""
    drawn = random_directions(data.texts.shards[0].mean.shape[1], 2 * K, seed)
    directions = directions_for(data, drawn, "orthogonal")
    return lambda other: dense(other.texts, "mean") @ directions.T


def difference_of_means(data: Data, train: np.ndarray, seed: int) -> Reader:
    """One feature: the projection on the mean difference of chosen and rejected representations."""
    z = dense(data.texts, "mean")
    direction = (z[data.chosen[train]] - z[data.rejected[train]]).mean(0)
    return lambda other: dense(other.texts, "mean") @ direction[:, None]


def length(data: Data, train: np.ndarray, seed: int) -> Reader:
    """The number of tokens alone."""
    return lambda other: other.lengths[:, None].astype(np.float64)


@dataclass(frozen=True)
class Trained:
    """A fitted method.

    Attributes:
        read: What the head reads.
        head: The head.
        seconds: What fitting took, cross-validation and selection included, from representations that are there.
    """

    read: Reader
    head: FittedHead
    seconds: float

    @property
    def parameters(self) -> int:
        """Trained parameters."""
        return sum(weight.size + bias.size for weight, bias in self.head.layers)

    def margins(self, data: Data) -> np.ndarray:
        """(P,) reward differences of the pairs."""
        rewards = self.head.rewards(self.read(data))
        return rewards[data.chosen] - rewards[data.rejected]


def train(method: Method, data: Data, seed: int, loss: str = "margin", head_type: str = "linear") -> Trained:
    """Fit a method's head as `SparseRMTrainer` does."""
    started = time.perf_counter()
    objective = Objective(loss, 1.0, np.zeros(len(data.chosen)))

    fold_of = group_folds(data.groups, FOLDS, seed)

    def features_for(fold: int | None) -> PairFeatures:
        features = method(data, pairs_outside(fold_of, fold), seed)(data)
        return PairFeatures(features[data.chosen], features[data.rejected])

    everything = np.arange(len(data.chosen))
    if head_type == "linear":
        head = fit_linear_head(features_for, objective, fold_of)
    else:
        head = fit_mlp_head(features_for(None), objective, data.groups, seed)
    return Trained(method(data, everything, seed), head, time.perf_counter() - started)


def correct(margins: np.ndarray) -> np.ndarray:
    """For each pair 1 where the chosen response has the higher reward, 1/2 for a tie; over several runs the mean."""
    return np.mean(pair_credits(np.atleast_2d(margins)), axis=0)


def accuracy(margins: np.ndarray) -> list[float]:
    """Mean accuracy in % of some runs, (runs, P) margins, and the ends of the 95% interval of test sets (Wilson)."""
    rows = [pair_metrics(row) for row in np.atleast_2d(margins)]
    return [100 * float(np.mean([getattr(row, name) for row in rows])) for name in ("accuracy", "low", "high")]


def accuracy_cell(margins: np.ndarray) -> str:
    """The same as text."""
    mean, low, high = accuracy(margins)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def difference_cell(margins: np.ndarray, reference: np.ndarray) -> str:
    """Accuracy minus that of a reference on the same pairs, with its paired 95% interval (Student)."""
    return str(paired_difference(correct(margins), correct(reference)))
