"""The one fixed split: which groups are held out, decided by a hash of the group's name alone.

The split does not depend on the order, the number or the labels of the images, so that pretraining,
fine-tuning and every benchmark agree on it without sharing any state.
"""

from __future__ import annotations

import hashlib

HELD_OUT_SHARE = 0.2


def unit_hash(text: str, salt: str = "split") -> float:
    """Return a number in [0, 1) that depends on `salt` and `text` alone, uniform over texts."""
    digest = hashlib.sha256(f"typicality:{salt}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_held_out(group: str, share: float = HELD_OUT_SHARE) -> bool:
    """Return whether `group` (an emoji, a patient, a webcam) belongs to the held-out part."""
    return unit_hash(group) < share


def fold_of(group: str, folds: int, seed: int = 0) -> int:
    """Return the fold in [0, folds) that `group` belongs to; whole groups stay together."""
    return int(fold_hash(group, seed) * folds)


def fold_hash(group: str, seed: int = 0) -> float:
    """Return the number in [0, 1) that puts `group` into a fold: the k-th of n folds has those from k / n on."""
    return unit_hash(group, salt=f"fold:{seed}")
