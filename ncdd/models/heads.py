"""The last layer: features (B, D) -> logits (B, K)."""

from typing import Literal

import torch
from torch import nn

from ncdd.collapse.simplex import simplex_etf


class Linear(nn.Linear):
    """The learned classifier `W h + b`."""

    def __init__(self, *, num_features: int, num_classes: int, bias: bool) -> None:
        super().__init__(num_features, num_classes, bias)


class XavierLinear(Linear):
    """The learned classifier, begun as the networks of Wang et al. 2018: Xavier-normal weight, zero bias."""

    def __init__(self, *, num_features: int, num_classes: int, bias: bool) -> None:
        super().__init__(num_features=num_features, num_classes=num_classes, bias=bias)
        nn.init.xavier_normal_(self.weight)
        if bias:
            nn.init.zeros_(self.bias)


class SimplexETF(nn.Linear):
    """A classifier fixed to a Simplex equiangular tight frame (Zhu et al. 2021, section 4.3).

    `weight` is `scale * E`, E from `ncdd.collapse.simplex_etf` with unit rows, and has no gradient. The bias, where
    there is one, is learned, as in Zhu's code.

    rotation: "identity" puts the ETF on the first K axes, "random" rotates it (with `seed`).
    scale: norm of each row of `weight`.
    Raises ValueError where no such frame exists, K > D + 1.
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_classes: int,
        bias: bool,
        rotation: Literal["identity", "random"],
        scale: float,
        seed: int,
    ) -> None:
        if scale <= 0:
            raise ValueError(f"scale={scale}: must be positive")
        frame_KD = simplex_etf(num_classes, num_features, rotation=rotation, seed=seed)
        super().__init__(num_features, num_classes, bias)
        with torch.no_grad():
            self.weight.copy_(scale * frame_KD)
            if bias:
                self.bias.zero_()
        self.weight.requires_grad_(False)
