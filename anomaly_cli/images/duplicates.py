"""Groups of copies and near-copies, by perceptual hash; near-linear in the number of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anomaly_cli.images.quality import LOOK_BYTES

# Re-encoded, halved or slightly brighter copies of the benchmark sets differ in fewer bits, other parts in the same
# pose in more (benchmarks/accuracy/near_duplicates.py).
MAX_LOOK_BITS = 36
MAX_LIGHT = 0.1  # by which the brightness of near-copies differs
ORDERS = 32  # random orders in which near-copies are looked for
NEIGHBOURS = 4  # compared with each image in each order
KEY_BITS = 64
PAIR_CHUNK = 8192  # pairs compared at once; bounds memory
_BITS_SET = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, np.uint8)


def group_near_duplicates(
    content_hashes: Sequence[str], looks: Sequence[str], brightness: Sequence[float]
) -> NDArray[np.int64]:
    """Find the files that have the same bytes, or look nearly the same, directly or through others.

    Args:
        content_hashes: of (N,) readable files, as in `Quality`.
        looks: likewise.
        brightness: likewise.

    Returns:
        (N,) number of the group, counted from 1 in the order of the files; 0 for a file that is alone.
    """
    _, first, file_of = np.unique(np.array(content_hashes, np.bytes_), return_index=True, return_inverse=True)
    packed = np.frombuffer(bytes.fromhex("".join(looks[i] for i in first)), np.uint8)
    component = _link_looks(packed.reshape(len(first), LOOK_BYTES), np.array(brightness, np.float64)[first])[file_of]
    _, start, label, count = np.unique(component, return_index=True, return_inverse=True, return_counts=True)
    several = np.flatnonzero(count > 1)
    number = np.zeros(len(count), np.int64)
    number[several[np.argsort(start[several])]] = np.arange(1, len(several) + 1)
    groups: NDArray[np.int64] = number[label]
    return groups


def _link_looks(looks: NDArray[np.uint8], brightness: NDArray[np.float64]) -> NDArray[np.int64]:
    """Join near-copies: sort by randomly drawn bits of the hash, compare neighbours, and that many times over.

    Two near-copies agree in almost any few bits drawn, so in some of the orders they stand side by side (Charikar
    2002). The work is bounded however alike the images are: N log N for each order, never N².

    Args:
        looks: (N, LOOK_BYTES) uint8.
        brightness: (N,).

    Returns:
        (N,) label, the same for images joined directly or through others.
    """
    draw = np.random.default_rng(0)
    words = looks.view(np.uint16)  # (N, LOOK_BYTES / 2)
    labels = np.arange(len(looks))
    for _ in range(ORDERS if len(looks) > 1 else 0):
        chosen = draw.choice(8 * LOOK_BYTES, KEY_BITS, replace=False)
        bits = looks[:, chosen // 8]  # (N, KEY_BITS)
        bits >>= (7 - chosen % 8).astype(np.uint8)
        bits &= 1
        key = np.ascontiguousarray(np.packbits(bits, axis=1)).view(">u8")[:, 0]
        order = np.lexsort((brightness, key))  # equal hashes by brightness, so that the nearest meet
        pairs = [np.stack([order[:-step], order[step:]]) for step in range(1, NEIGHBOURS + 1)]
        labels = _merge_components(
            labels, np.concatenate([_near_copies(pair, words, brightness) for pair in pairs], axis=1)
        )
    return labels


def _near_copies(
    pairs: NDArray[np.int64], words: NDArray[np.uint16], brightness: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Keep those of (2, P) pairs that look nearly the same."""
    a, b = pairs[:, np.abs(brightness[pairs[0]] - brightness[pairs[1]]) <= MAX_LIGHT]
    near = np.empty(len(a), np.bool_)
    for start in range(0, len(a), PAIR_CHUNK):
        chunk = slice(start, start + PAIR_CHUNK)
        differing = _BITS_SET[words[a[chunk]] ^ words[b[chunk]]].sum(axis=1, dtype=np.int64)
        near[chunk] = differing <= MAX_LOOK_BITS
    kept: NDArray[np.int64] = np.stack([a[near], b[near]])
    return kept


def _merge_components(labels: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the images of each of (2, P) pairs, and all that share a label with them, the same label."""
    if not pairs.size:
        return labels
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = labels[pairs]
    edges = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(labels), len(labels)))
    joined: NDArray[np.int64] = connected_components(edges, directed=False)[1].astype(np.int64)[labels]
    return joined
