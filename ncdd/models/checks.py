"""What every network asks of its sizes."""


def at_least_1(**sizes: int | None) -> None:
    """ValueError that names the first size below 1; None is a size that is not given."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"model.{name}={size}: a number >= 1 is needed")
