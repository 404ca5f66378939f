"""Networks without their last layer, and the last layers: `body(x)` gives the features, `head(features)` the logits."""

from ncdd.models.convnet import ConvNet
from ncdd.models.guided import NearestETF
from ncdd.models.heads import Linear, SimplexETF
from ncdd.models.mlp import MLP
from ncdd.models.orthogonal import NonNegativeOrthogonal
from ncdd.models.resnet import ResNet
from ncdd.models.unconstrained import UnconstrainedFeatures

__all__ = [
    "MLP",
    "ConvNet",
    "Linear",
    "NearestETF",
    "NonNegativeOrthogonal",
    "ResNet",
    "SimplexETF",
    "UnconstrainedFeatures",
]
