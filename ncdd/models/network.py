"""A body and its last layer as one module, for whoever needs networks rather than features."""

from collections.abc import Callable

from torch import Tensor, nn

from ncdd.models.heads import Linear

Body = Callable[..., nn.Module]  # (in_channels=, image_size=) -> a body with `forward_features` and `num_features`
Head = Callable[..., nn.Linear]  # (num_features=, num_classes=) -> the last layer


class Network(nn.Module):
    """`head(model.forward_features(x))`: (B, C, H, W) -> logits (B, K).

    model: body with `forward_features` and `num_features`.  head: last linear layer.
    """

    def __init__(self, model: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): what the head sees."""
        return self.model.forward_features(x)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


def network_of(body: Body, head: Head, *, in_channels: int, image_size: int, num_classes: int) -> Network:
    """A network of an architecture for images and classes like these."""
    model = body(in_channels=in_channels, image_size=image_size)
    return Network(model, head(num_features=model.num_features, num_classes=num_classes))


def with_learned_head(new_network: Callable[[], Network]) -> Callable[[], Network]:
    """Networks of the same kind with a learned `W h + b` in the place of a head whose weight has no gradient.

    They judge a synthetic set, whatever head taught it: what is compared is then the set.
    """

    def learned() -> Network:
        network = new_network()
        if not network.head.weight.requires_grad:
            features, classes = network.head.in_features, network.head.out_features
            network.head = Linear(num_features=features, num_classes=classes, bias=True)
        return network

    return learned
