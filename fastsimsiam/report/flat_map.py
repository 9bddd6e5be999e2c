"""Features on a plane: t-SNE of their principal components, by scikit-learn."""

import numpy as np
import numpy.typing as npt

MOST = 2000
"""Images; t-SNE of as many takes some ten seconds on two cores."""
_FEWEST = 10
_COMPONENTS = 50
_PERPLEXITY = 30.0
# Features have length 1. What spreads less than rounding has no neighborhoods to show.
_NO_SPREAD = 1e-5


def flat_map(features: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32] | None, str]:
    """Positions on a map where near means alike; the same features give the same map.

    Args:
        features: (N, D) of length 1, N at most `MOST`.

    Returns:
        (N, 2) and an empty text; or None, and why there is no map.
    """
    number, width = features.shape
    assert number <= MOST
    if number < _FEWEST:
        return None, f"a map of {number} images shows nothing: it takes {_FEWEST} or more"
    if float(features.std(axis=0).max()) < _NO_SPREAD:
        return None, "all images have the same features: the map would be one point"
    # Here, because scikit-learn is optional and takes seconds to load.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = min(_COMPONENTS, number, width)
    main = PCA(n_components=components, random_state=0).fit_transform(features)
    perplexity = min(_PERPLEXITY, (number - 1) / 3)
    position = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(main)
    return np.asarray(position, np.float32), ""
