"""The blocks of a network: after each of them its features are worth a look."""

from collections.abc import Iterator

from torch import nn


def blocks(body: nn.Module) -> list[str]:
    """Names of a network's blocks, in the order of its definition.

    That is what lies directly in a sequence and is a class of its own (residual blocks and the like), and, outside of
    such blocks, the activations that do (after each convolution of a ConvNet, each hidden layer of an MLP).
    """
    names = list(_blocks(body, "", isinstance(body, nn.Sequential)))
    if not names:
        raise ValueError(
            f"no blocks in a {type(body).__name__}: name them by task.layers=[...], or leave method.match_blocks=false"
        )
    return names


def _blocks(module: nn.Module, path: str, sequence: bool) -> Iterator[str]:
    for name, child in module.named_children():
        inside = f"{path}{name}"
        home = type(child).__module__
        own_class = not home.startswith("torch.nn.")
        activation = home == "torch.nn.modules.activation" and not isinstance(child, nn.MultiheadAttention)
        if sequence and (own_class or activation):
            yield inside
        else:
            yield from _blocks(child, f"{inside}.", isinstance(child, nn.Sequential | nn.ModuleList))
