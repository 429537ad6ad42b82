"""Features without what all patches have in common: whitened, so that each direction counts by what it tells.

A cosine of raw features is ruled by the directions in which patches of any kind differ most. In whitened features the
cosine with an exemplar, or with the mean of a few, is the linear discriminant that tells it from patches in general,
for which no negatives have to be collected (Hariharan, Malik & Ramanan, "Discriminative decorrelation for clustering
and classification", ECCV 2012). The covariance is shrunk (Ledoit & Wolf 2004).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf

SMALLEST = 1e-6
"""Variances are at least so much of the largest one."""


@dataclass(frozen=True)
class Whitening:
    """A linear map of features, learned from patches of any kind.

    Attributes
    ----------
    mean : (d,)
    transform : (d, d), so that (x - mean) @ transform has unit covariance
    """

    mean: Float[np.ndarray, " d"]
    transform: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> Whitening:
        """Learn it from at least two features."""
        covariance, _ = ledoit_wolf(features)
        values, vectors = np.linalg.eigh(covariance)
        floor = max(float(values[-1]) * SMALLEST, np.finfo(np.float64).tiny)
        return cls(features.mean(0), vectors / np.sqrt(np.maximum(values, floor)))

    def __call__(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Whiten features."""
        return (features - self.mean) @ self.transform

    def unit(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Whiten features and scale them to unit length; what equals the mean stays zero."""
        white = self(features)
        return white / np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12)
