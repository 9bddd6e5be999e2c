"""A map of features in two dimensions: t-SNE of their principal components, by scikit-learn."""

import numpy as np
import numpy.typing as npt

MOST = 2000
"""Largest number of images; t-SNE of as many takes about ten seconds on two cores."""
_FEWEST = 10
_COMPONENTS = 50
_PERPLEXITY = 30.0
# Features have length 1: a spread below rounding errors has no structure to show.
_NO_SPREAD = 1e-5


def flat_map(features: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32] | None, str]:
    """Places similar images near each other; the same features give the same map.

    Args:
        features: (N, D), rows of length 1, N at most `MOST`.

    Returns:
        Positions (N, 2) and an empty text; or None, and the reason why there is no map.
    """
    number, width = features.shape
    assert number <= MOST
    if number < _FEWEST:
        return None, f"{number} images are too few for a map: {_FEWEST} or more are needed"
    if float(features.std(axis=0).max()) < _NO_SPREAD:
        return None, "all images have the same features: the map would be one point"
    # Imported here: scikit-learn is optional and takes seconds to load.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = min(_COMPONENTS, number, width)
    main = PCA(n_components=components, random_state=0).fit_transform(features)
    perplexity = min(_PERPLEXITY, (number - 1) / 3)
    position = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(main)
    return np.asarray(position, np.float32), ""
