"""Groups of copies and near-copies, by perceptual hash; near-linear in the number of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anomaly_cli.images.quality import HASH_BYTES

# Re-encoded, halved or slightly brighter copies of the benchmark sets differ in fewer bits, other parts in the same
# pose in more (benchmarks/accuracy/near_duplicates.py).
MAX_HASH_BITS = 36
MAX_BRIGHTNESS_STEP = 0.1  # by which the brightness of near-copies differs
ORDERS = 32  # random orders in which near-copies are searched
NEIGHBOURS = 4  # compared with each image in each order
KEY_BITS = 64
PAIR_CHUNK = 8192  # pairs compared at once; bounds memory
_BITS_SET = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, np.uint8)


def group_near_duplicates(
    content_hashes: Sequence[str], perceptual_hashes: Sequence[str], brightness: Sequence[float]
) -> NDArray[np.int64]:
    """Find the files with the same bytes or similar perceptual hashes, directly or through others.

    Args:
        content_hashes: of (N,) readable files, as in `Quality`.
        perceptual_hashes: likewise.
        brightness: likewise.

    Returns:
        (N,) number of the group, counted from 1 in the order of the files; 0 for a file without a duplicate.
    """
    _, first, file_of = np.unique(np.array(content_hashes, np.bytes_), return_index=True, return_inverse=True)
    packed = np.frombuffer(bytes.fromhex("".join(perceptual_hashes[i] for i in first)), np.uint8)
    component = _link_near_duplicates(packed.reshape(len(first), HASH_BYTES), np.array(brightness, np.float64)[first])[
        file_of
    ]
    _, start, label, count = np.unique(component, return_index=True, return_inverse=True, return_counts=True)
    several = np.flatnonzero(count > 1)
    number = np.zeros(len(count), np.int64)
    number[several[np.argsort(start[several])]] = np.arange(1, len(several) + 1)
    groups: NDArray[np.int64] = number[label]
    return groups


def _link_near_duplicates(hashes: NDArray[np.uint8], brightness: NDArray[np.float64]) -> NDArray[np.int64]:
    """Label near-copies by locality-sensitive hashing (Charikar 2002): bit sampling, `ORDERS` rounds.

    Each round sorts by randomly drawn bits of the hash and compares neighbours. Near-copies agree in almost all bits,
    so that they are neighbours in some round. N log N for each round, however similar the images are.

    Args:
        hashes: (N, HASH_BYTES) uint8.
        brightness: (N,).

    Returns:
        (N,) label, the same for images joined directly or through others.
    """
    draw = np.random.default_rng(0)
    words = hashes.view(np.uint16)  # (N, HASH_BYTES / 2)
    labels = np.arange(len(hashes))
    for _ in range(ORDERS if len(hashes) > 1 else 0):
        chosen = draw.choice(8 * HASH_BYTES, KEY_BITS, replace=False)
        bits = hashes[:, chosen // 8]  # (N, KEY_BITS)
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
    """Keep those of (2, P) pairs that differ in few bits of their hashes and little in brightness."""
    a, b = pairs[:, np.abs(brightness[pairs[0]] - brightness[pairs[1]]) <= MAX_BRIGHTNESS_STEP]
    near = np.empty(len(a), np.bool_)
    for start in range(0, len(a), PAIR_CHUNK):
        chunk = slice(start, start + PAIR_CHUNK)
        differing = _BITS_SET[words[a[chunk]] ^ words[b[chunk]]].sum(axis=1, dtype=np.int64)
        near[chunk] = differing <= MAX_HASH_BITS
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
