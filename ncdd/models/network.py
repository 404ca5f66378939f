"""A body and its last layer as one module, for whoever needs networks rather than features."""

from torch import Tensor, nn


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
