"""Any classification network of torchvision, less its last layer, so that published weights can be measured."""

from __future__ import annotations

import difflib

from torch import Tensor, nn
from torchvision import models

# their training output is no tensor, their classifier is a convolution, or they take 224 pixels only
LEFT_OUT = ("googlenet", "inception_v3", "maxvit_t", "squeezenet1_0", "squeezenet1_1")


class TorchVision(nn.Module):
    """(B, C, H, W) -> (B, num_features): what torchvision's network hands to its last linear layer.

    name: as in `torchvision.models.list_models()`.  Grey images are repeated to three channels, as published weights
    expect; vision transformers are made for `image_size`, the others take any size that their strides allow.
    The parameters have torchvision's names below `network`.
    """

    def __init__(self, *, in_channels: int, image_size: int, name: str) -> None:
        super().__init__()
        known = [model for model in models.list_models(module=models) if model not in LEFT_OUT]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(f"name={name!r}: did you mean {near[0]}? choose from {', '.join(known)}")
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels={in_channels}: torchvision's networks see grey or colour images, 1 or 3")
        options = {"image_size": image_size} if name.startswith("vit") else {}
        self.network = models.get_model(name, weights=None, **options)
        path, last = [(path, m) for path, m in self.network.named_modules() if isinstance(m, nn.Linear)][-1]
        self.num_features = last.in_features
        self.network.set_submodule(path, nn.Identity())

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        return self.network(x.expand(-1, 3, -1, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)
