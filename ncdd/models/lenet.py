"""LeNet-5 as the distillation field has it: ReLU, max pooling, no dropout (Wang et al. 2018, arXiv 1811.10959)."""

from torch import Tensor, nn

from ncdd.models.checks import at_least_1


def xavier_normal(network: nn.Module) -> None:
    """Every weight matrix and kernel Xavier-normal with gain 1, every bias 0: Wang et al.'s initialisation."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class LeNet(nn.Sequential):
    """[5x5 conv, ReLU, 2x2 max pooling] with 6 and 16 channels, then 120 and 84 units: (B, C, H, W) -> (B, 84).

    Images below 32 pixels get a padding of 2 in the first convolution, so that 28 end as 5 x 5, like 32 without.
    With the head of 10 classes on MNIST it has 61,706 parameters. Xavier-normal weights, zero biases.
    feature_dim: width of the last hidden layer in the place of 84 (d = K).
    """

    def __init__(self, *, in_channels: int, image_size: int, feature_dim: int | None = None) -> None:
        at_least_1(feature_dim=feature_dim)
        padding = 2 if image_size < 32 else 0
        after_first = (image_size + 2 * padding - 4) // 2
        side = (after_first - 4) // 2
        if side < 1:
            raise ValueError(f"image_size={image_size}: LeNet's two 5x5 convolutions need images of at least 12 pixels")
        self.num_features = feature_dim or 84
        super().__init__(
            nn.Conv2d(in_channels, 6, 5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * side**2, 120),
            nn.ReLU(),
            nn.Linear(120, self.num_features),
            nn.ReLU(),
        )
        xavier_normal(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        return self(x)
