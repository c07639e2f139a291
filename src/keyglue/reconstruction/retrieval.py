"""Which images may show the same place: one vector an image, made from its own local features, compared by product.

The vector is a VLAD (Jégou et al., CVPR 2010) with intra-normalisation (Arandjelović and Zisserman, CVPR 2013): for
each word c of a codebook the sum of (x - c) / |x - c| over the descriptors x nearest to it, each sum brought to length
one, signed square roots, centred, reduced by PCA. Codebook and PCA come from the images themselves: nothing is loaded.

The order of the nearest ones comes from all of them together: what resembles the images that an image resembles most is
more likely to show the same place than what resembles that one image alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from keyglue.base.errors import InputError
from keyglue.reconstruction.overlap import STRONGEST, descriptor_overlap
from keyglue.reconstruction.pairs import Pairs
from keyglue.reconstruction.store import FeatureStore

Vectors = NDArray[np.float32]

_TRAINING_IMAGES = 2048
_TRAINING_DESCRIPTORS = 131_072
_DESCRIPTORS_PER_WORD = 50
_ROUNDS = 12
_BATCH = 64  # images whose vectors are reduced at once, because the axes are larger than the processor's cache
# Most similar images of each that speak for others. Chosen, as RetrievalOptions.keypoints, on a walk around a building.
LINKS = 10
# Overlap scores up to this are those of unrelated images.
_NOISE = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """Settings of the image vectors.

    Attributes:
        words: Size of the codebook.
        keypoints: Number of an image's strongest keypoints that are looked at.
        dimensions: Largest length of an image's vector.
        seed: Start of the random numbers.
    """

    words: int = 128
    keypoints: int = 2048
    dimensions: int = 512
    seed: int = 0


def image_vectors(
    store: FeatureStore,
    names: Sequence[str],
    options: RetrievalOptions | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Vectors:
    """Return one unit vector for each image, (n, d); an image without keypoints gets zeros.

    Args:
        store: Features of the images.
        names: The images.
        options: Settings.
        progress: Called with "describe images", the number of images done and that of all.

    Raises:
        InputError: There are no images.
    """
    chosen = options or RetrievalOptions()
    if not names:
        raise InputError("retrieval needs at least one image.")
    generator = torch.Generator().manual_seed(chosen.seed)
    sample = _sample(len(names), _TRAINING_IMAGES, generator)
    codebook = _train_codebook(store, [names[index] for index in sample], chosen, generator)
    known = torch.zeros(len(sample), codebook.numel())
    for row, index in enumerate(sample):
        known[row] = _aggregate(_descriptors(store, names[index], chosen), codebook)
    mean, axes = _principal_axes(known, chosen.dimensions)
    del known
    vectors = np.zeros((len(names), axes.shape[1]), dtype=np.float32)
    for start in range(0, len(names), _BATCH):
        batch = torch.stack(
            [_aggregate(_descriptors(store, name, chosen), codebook) for name in names[start : start + _BATCH]]
        )
        reduced = normalize((batch - mean) @ axes, dim=1) * batch.any(dim=1, keepdim=True)
        vectors[start : start + len(batch)] = reduced.numpy()
        if progress is not None:
            progress("describe images", start + len(batch), len(names))
    return vectors


def nearest_images(vectors: Vectors, count: int, *, block: int = 2048) -> NDArray[np.int64]:
    """Return for each image the ``count`` most similar others, best first, (n, min(count, n - 1)).

    Memory is bounded by ``block`` times the number of images.

    Args:
        vectors: (n, d) from ``image_vectors``.
        count: Number of neighbours.
        block: Number of images that are compared with all others at once.

    Raises:
        InputError: ``count`` is not positive.
    """
    if count < 1:
        raise InputError(f"each image needs at least one neighbour, got {count}.")
    everything = torch.from_numpy(vectors)
    total = len(everything)
    found = np.zeros((total, min(count, total - 1)), dtype=np.int64)
    # Fewer rows at a time for many images, so that one product stays near 256 MB.
    rows = max(1, min(block, (64 << 20) // max(1, total)))
    for start in range(0, total, rows):
        part = everything[start : start + rows]
        similarity = part @ everything.T
        own = torch.arange(len(part))
        similarity[own, own + start] = -torch.inf
        found[start : start + len(part)] = similarity.topk(found.shape[1], dim=1).indices.numpy()
    return found


def vector_similarities(vectors: Vectors, pairs: Pairs) -> NDArray[np.float32]:
    """Return how similar the vectors of each pair are, (P,), 0 to 1; negative similarities count as none."""
    found = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), 1 << 14):
        first, second = pairs[start : start + (1 << 14)].T
        found[start : start + len(first)] = np.einsum("pd,pd->p", vectors[first], vectors[second])
    return found.clip(0, 1)


def pair_overlaps(
    store: FeatureStore,
    names: Sequence[str],
    pairs: Pairs,
    *,
    memory: int = 1 << 30,
    progress: Callable[[str, int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Return by how much the ``overlap_score`` of each pair is above that of unrelated images, (P,).

    Args:
        store: Features of the images.
        names: The images.
        pairs: (P, 2) indices into the names, in the order of ``schedule`` so that each image is read once or few times.
        memory: Bytes of descriptors that are kept in memory.
        progress: Called with "compare images", the number of pairs done and that of all.
    """

    @functools.lru_cache(maxsize=descriptor_capacity(store, names, memory))
    def strongest(index: int) -> Tensor:
        return normalize(torch.from_numpy(store.descriptors(names[index], STRONGEST)).float(), dim=1)

    found = np.empty(len(pairs), dtype=np.float32)
    for done, (first, second) in enumerate(pairs.tolist()):
        found[done] = descriptor_overlap(strongest(first), strongest(second))
        if progress is not None:
            progress("compare images", done + 1, len(pairs))
    return (found - _NOISE).clip(0)


def descriptor_capacity(store: FeatureStore, names: Sequence[str], memory: int = 1 << 30) -> int:
    """Return of how many images the strongest descriptors fit into memory, judged by the first image."""
    return max(2, memory // max(1, store.descriptors(names[0], STRONGEST).size * 4))


def best_connected(pairs: Pairs, weights: NDArray[np.float32], total: int, count: int) -> NDArray[np.int64]:
    """Return for each image the others that are most like it and like those that it is most like, best first.

    With a_ij the weights of the ``LINKS`` heaviest pairs of image i, brought to the sum one, image j gets the score
    a_ij + sum over k of a_ik a_kj. Images without a score follow in the order of their weights.

    Args:
        pairs: (P, 2) pairs of images.
        weights: (P,) how much alike they are, not negative.
        total: Number of images.
        count: Number of others for each image.

    Returns:
        (total, min(count, total - 1)), -1 where there are no more.
    """
    images, others = np.concatenate([pairs, pairs[:, ::-1]]).T
    values = np.concatenate([weights, weights])
    order = np.lexsort((others, -values, images))
    starts = np.searchsorted(images[order], np.arange(total + 1))
    others, values = others[order], values[order].astype(np.float64)
    links = [slice(start, min(start + LINKS, stop)) for start, stop in itertools.pairwise(starts.tolist())]
    for link in links:
        values[link] /= max(float(values[link].sum()), 1e-9)
    found = np.full((total, max(0, min(count, total - 1))), -1, dtype=np.int64)
    for image, link in enumerate(links):
        near = others[link].tolist()
        steps = [(links[other], weight) for other, weight in zip(near, values[link].tolist(), strict=True)]
        rest = others[link.stop : starts[image + 1]]
        candidates = np.concatenate([others[link], *[others[step] for step, _ in steps], rest])
        scores = np.concatenate([values[link], *[weight * values[step] for step, weight in steps], np.zeros(len(rest))])
        names, first, place = np.unique(candidates, return_index=True, return_inverse=True)
        sums = np.bincount(place, scores, minlength=len(names))
        ranked = names[np.lexsort((first, -sums))]
        ranked = ranked[ranked != image][: found.shape[1]]
        found[image, : len(ranked)] = ranked
    return found


def _descriptors(store: FeatureStore, name: str, options: RetrievalOptions) -> Tensor:
    return torch.from_numpy(store.descriptors(name, options.keypoints)).float()


def _sample(total: int, most: int, generator: torch.Generator) -> list[int]:
    return sorted(torch.randperm(total, generator=generator)[:most].tolist())


def _train_codebook(
    store: FeatureStore, names: Sequence[str], options: RetrievalOptions, generator: torch.Generator
) -> Tensor:
    """Return (words, D) unit vectors: spherical k-means of descriptors from all over the images."""
    share = max(8, _TRAINING_DESCRIPTORS // len(names))
    parts: list[Tensor] = []
    for name in names:
        found = _descriptors(store, name, options)
        parts.append(found[_sample(len(found), share, generator)])
    pool = torch.cat(parts)
    if not len(pool):
        raise InputError("no image has keypoints: retrieval has nothing to go by.")
    pool = pool[_sample(len(pool), _TRAINING_DESCRIPTORS, generator)]
    # A word that stands for a few descriptors only says which image it is, not which place.
    count = min(options.words, 1 + len(pool) // _DESCRIPTORS_PER_WORD)
    words = pool[torch.randperm(len(pool), generator=generator)[:count]].clone()
    for _ in range(_ROUNDS):
        nearest = _nearest_word(pool, words)
        # A word that nothing is nearest to stays where it is.
        sums = (1e-6 * words).index_add_(0, nearest, pool)
        words = normalize(sums, dim=1)
    return words


def _nearest_word(descriptors: Tensor, words: Tensor) -> Tensor:
    return torch.cat([(part @ words.T).argmax(dim=1) for part in descriptors.split(16384)])


def _aggregate(descriptors: Tensor, codebook: Tensor) -> Tensor:
    """Return the VLAD (words * D,) of an image, of length one, or zeros without keypoints."""
    sums = torch.zeros_like(codebook)
    if len(descriptors):
        nearest = _nearest_word(descriptors, codebook)
        sums.index_add_(0, nearest, normalize(descriptors - codebook[nearest], dim=1))
    flat = normalize(sums, dim=1).flatten()
    return normalize(flat.sign() * flat.abs().sqrt(), dim=0)


def _principal_axes(vectors: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the mean (V,) and the axes (V, d) of largest variance, through the products of the images."""
    mean = vectors.mean(dim=0)
    if len(vectors) == 1:
        return torch.zeros_like(mean), normalize(vectors, dim=1).T
    centred = vectors - mean
    values, products = torch.linalg.eigh((centred @ centred.T).double())
    order = torch.argsort(values, descending=True)[: min(most, len(vectors) - 1)]
    keep = order[values[order] > 1e-9 * values[order[0]].clamp(min=1e-30)]
    axes = centred.T @ (products[:, keep] / values[keep].sqrt()).float()
    return mean, axes
