"""Networks without their last layer, and the last layers: `body(x)` gives the features, `head(features)` the logits."""

from ncdd.models.convnet import ConvNet
from ncdd.models.heads import Linear, SimplexETF
from ncdd.models.mlp import MLP
from ncdd.models.resnet import ResNet

__all__ = ["MLP", "ConvNet", "Linear", "ResNet", "SimplexETF"]
