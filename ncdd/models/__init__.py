"""Networks without their last layer, and the last layers: `body(x)` gives the features, `head(features)` the logits."""

from ncdd.models.alexcifar import AlexCifarNet
from ncdd.models.convnet import ConvNet
from ncdd.models.guided import NearestETF
from ncdd.models.heads import Linear, SimplexETF, XavierLinear
from ncdd.models.lenet import LeNet
from ncdd.models.mlp import MLP
from ncdd.models.network import Network, with_learned_head
from ncdd.models.orthogonal import NonNegativeOrthogonal
from ncdd.models.resnet import ResNet
from ncdd.models.unconstrained import UnconstrainedFeatures
from ncdd.models.vgg import VGG11

__all__ = [
    "MLP",
    "VGG11",
    "AlexCifarNet",
    "ConvNet",
    "LeNet",
    "Linear",
    "NearestETF",
    "Network",
    "NonNegativeOrthogonal",
    "ResNet",
    "SimplexETF",
    "UnconstrainedFeatures",
    "XavierLinear",
    "with_learned_head",
]
