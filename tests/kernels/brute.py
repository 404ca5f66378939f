"""A second implementation, one pair of images at a time: full (H, W, H, W) covariances in numpy, as in the papers."""

import numpy as np


def kernel(architecture, x1, x2, w_std, b_std):
    """(NNGP, NTK) of images (C, H, W)."""
    covariances = {(i, j): np.einsum("cab,cde->abde", a, b) / len(a)
                   for i, a in enumerate((x1, x2)) for j, b in enumerate((x1, x2))}  # fmt: skip
    tangent = None
    for name in architecture:
        if name in ("conv", "dense"):
            smooth = box if name == "conv" else np.asarray
            covariances = {key: w_std**2 * smooth(K) + b_std**2 for key, K in covariances.items()}
            before = 0 if tangent is None else w_std**2 * smooth(tangent)
            tangent = before + covariances[0, 1]
        elif name == "relu":
            covariances, derivative = activate(covariances)
            tangent = tangent * derivative
        else:
            change = {"avgpool": pool, "flatten": flatten, "gap": np.mean}[name]
            covariances, tangent = {key: change(K) for key, K in covariances.items()}, change(tangent)
    return covariances[0, 1], tangent


def activate(covariances):
    roots = [np.sqrt(diagonal(covariances[i, i])) for i in (0, 1)]
    new = {}
    for (i, j), K in covariances.items():
        s = np.multiply.outer(roots[i], roots[j])
        angle = np.arccos(np.clip(K / s, -1, 1))
        new[i, j] = (s * np.sin(angle) + (np.pi - angle) * K) / (2 * np.pi)
        if (i, j) == (0, 1):
            derivative = (np.pi - angle) / (2 * np.pi)
    return new, derivative


def diagonal(K):
    return np.einsum("abab->ab", K) if K.ndim else K


def box(K):
    H, W = K.shape[:2]
    padded = np.pad(K, 1)
    return sum(padded[a : a + H, b : b + W, a : a + H, b : b + W] for a in range(3) for b in range(3)) / 9


def pool(K):
    H, W = K.shape[0] // 2, K.shape[1] // 2
    return K[: 2 * H, : 2 * W, : 2 * H, : 2 * W].reshape(H, 2, W, 2, H, 2, W, 2).mean(axis=(1, 3, 5, 7))


def flatten(K):
    return diagonal(K).mean()
