"""AlexCifarNet, the network of Wang et al. 2018 (arXiv 1811.10959) for CIFAR-10, after cuda-convnet's."""

from torch import Tensor, nn

from ncdd.models.checks import at_least_1
from ncdd.models.lenet import xavier_normal


def _response_norm() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(4, alpha=0.001 / 9.0, beta=0.75, k=1)


class AlexCifarNet(nn.Sequential):
    """Two 5x5 convolutions of 64 channels with local response normalisation, then 384 and 192 units.

    (B, C, H, W) -> (B, 192). With the head of 10 classes on 3 x 32 x 32 images it has 1,756,426 parameters.
    Xavier-normal weights, zero biases.
    feature_dim: width of the last hidden layer in the place of 192 (d = K).
    """

    def __init__(self, *, in_channels: int, image_size: int, feature_dim: int | None = None) -> None:
        at_least_1(feature_dim=feature_dim)
        side = -(-image_size // 4)  # each pooling rounds half the size up
        self.num_features = feature_dim or 192
        super().__init__(
            nn.Conv2d(in_channels, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            _response_norm(),
            nn.Conv2d(64, 64, 5, padding=2),
            nn.ReLU(),
            _response_norm(),
            nn.MaxPool2d(3, 2, padding=1),
            nn.Flatten(),
            nn.Linear(64 * side**2, 384),
            nn.ReLU(),
            nn.Linear(384, self.num_features),
            nn.ReLU(),
        )
        xavier_normal(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        return self(x)
