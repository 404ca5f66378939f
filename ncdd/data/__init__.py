"""Data: sources, in-memory device loaders, augmentation, and the Lightning data module that puts them together."""

from ncdd.data.augment import Augment
from ncdd.data.images import ImageFiles, Images, Normalisation, Source
from ncdd.data.loader import DeviceLoader
from ncdd.data.module import ImageDataModule, distilled_module

__all__ = [
    "Augment",
    "DeviceLoader",
    "ImageDataModule",
    "ImageFiles",
    "Images",
    "Normalisation",
    "Source",
    "distilled_module",
]
