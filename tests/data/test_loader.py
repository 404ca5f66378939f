"""The loader: what it covers, in which order, normalised how, and that it resumes bit for bit."""

import numpy as np
import pytest
import torch

from ncdd.data import Augment, DeviceLoader, Images, Normalisation
from ncdd.data.folders import image_folder

NORMALISATION = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
AUGMENT = Augment(crop=1, flip=True, cutout=2)


def loader(count: int = 50, **changes) -> DeviceLoader:
    options = {"batch_size": 8, "shuffle": True, "augment": AUGMENT, "seed": 5, **changes}
    return DeviceLoader(images=numbered(count), normalisation=NORMALISATION, **options)


def numbered(count: int) -> Images:
    """Labels that are the samples' own numbers, to follow them through a shuffle."""
    pixels = torch.randint(256, (count, 3, 6, 6), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
    return Images(pixels, torch.arange(count))


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(first, second, strict=True)
    )


def seen(batches) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


def test_an_epoch_covers_each_sample_once_in_a_new_order():
    batches = list(loader())
    assert [len(labels) for _, labels in batches] == [8] * 6 + [2]
    assert sorted(seen(batches)) == list(range(50))
    assert seen(batches) != list(range(50))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16])
def test_length(count, drop_last):
    several = loader(count, drop_last=drop_last)
    assert len(several) == len(list(several)) == (count // 8 if drop_last else -(-count // 8))


def test_batches_are_a_function_of_seed_and_epoch():
    first, second = loader(), loader()
    epochs = [list(first), list(first)]  # the epoch goes up by itself
    second.set_epoch(1)
    assert same(list(second), epochs[1])
    second.set_epoch(0)
    assert same(list(second), epochs[0])
    assert seen(epochs[0]) != seen(epochs[1])
    assert seen(list(loader(seed=6))) != seen(epochs[0])


def test_augmentation_differs_between_steps_and_epochs():
    several = loader()
    draws = [several._draws(epoch, step) for epoch in range(2) for step in range(3)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 6


def test_the_global_random_stream_neither_matters_nor_moves():
    torch.manual_seed(1)
    first = list(loader())
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert same(list(loader()), first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_normalisation_is_numpys():
    images = numbered(50)
    plain = DeviceLoader(images=images, normalisation=NORMALISATION, batch_size=16)
    got = torch.cat([x for x, _ in plain]).numpy()
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (NORMALISATION.mean, NORMALISATION.std))
    np.testing.assert_allclose(got, (images.pixels.numpy() / 255 - mean) / std, rtol=0, atol=1e-6)
    assert got.dtype == np.float32


def test_the_crop_pads_with_black():
    white = Images(torch.full((4, 3, 6, 6), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    cropped = DeviceLoader(
        images=white, normalisation=NORMALISATION, batch_size=4, shuffle=True, augment=Augment(crop=5)
    )
    ((x, _),) = cropped
    black = torch.zeros(1, 3, 6, 6, dtype=torch.uint8)
    assert torch.equal(x.amin((0, 2, 3)), cropped._normalise(black)[0, :, 0, 0])


def test_float_images_and_soft_labels_pass_unchanged():
    images = Images(torch.randn(6, 3, 4, 4), torch.rand(6, 5))
    plain = DeviceLoader(images=images, normalisation=NORMALISATION, batch_size=4)
    assert torch.equal(torch.cat([x for x, _ in plain]), images.pixels)
    assert torch.equal(torch.cat([y for _, y in plain]), images.labels)


@pytest.mark.parametrize("steps", [0, 1, 3, 6, 7])
def test_resume_is_bitwise(steps):
    """As Lightning does it: the state is taken between two batches, and the epoch set again after loading."""
    whole = loader()
    whole.set_epoch(4)
    expected = list(whole)
    stopped = loader()
    stopped.set_epoch(4)
    running = iter(stopped)
    for _ in range(steps):
        next(running)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    rest = iter(resumed)
    resumed.set_epoch(4)
    assert same(list(rest), expected[steps:])
    following = loader()
    following.set_epoch(5)
    assert same(list(resumed), list(following))


def test_a_state_from_the_end_of_an_epoch_starts_the_next_one_whole():
    stopped = loader()
    running = iter(stopped)
    for _ in range(len(stopped)):
        next(running)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    resumed.set_epoch(1)
    assert len(list(resumed)) == len(resumed)


def test_an_abandoned_epoch_starts_over():
    several = loader()
    next(iter(several))
    assert len(list(several)) == 7


def test_a_changed_batch_size_cannot_resume_in_the_middle():
    stopped = loader()
    next(iter(stopped))
    with pytest.raises(ValueError, match=r"middle of epoch 0: .* batch_size=8 \(now 4\)"):
        loader(batch_size=4).load_state_dict(stopped.state_dict())


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batches(world_size):
    """Together they see what one process sees, augmentation included, but for a remainder that cannot be shared."""
    whole = list(loader(51))
    ranks = [list(loader(51, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, (x, y) in enumerate(whole[:6]):
        assert torch.equal(torch.stack([rank[step][0] for rank in ranks], 1).flatten(0, 1), x)
        assert torch.equal(torch.stack([rank[step][1] for rank in ranks], 1).flatten(), y)
    assert len({len(rank) for rank in ranks}) == len({len(seen(rank)) for rank in ranks}) == 1
    assert sum(len(rank[-1][1]) for rank in ranks) in (3 // world_size * world_size, 8)
    assert all(len(loader(51, rank=rank, world_size=world_size)) == len(ranks[rank]) for rank in range(world_size))


@pytest.mark.parametrize("count", [2, 13, 24])
def test_measuring_shards_are_a_partition(count):
    shards = [
        list(loader(count, shuffle=False, augment=None, rank=rank, world_size=3, batch_size=6)) for rank in range(3)
    ]
    numbers = [seen(shard) if shard else [] for shard in shards]
    assert sorted(number for shard in numbers for number in shard) == list(range(count))
    assert all(list(shard) == sorted(shard) for shard in numbers)
    assert len(loader(count, shuffle=False, rank=1, world_size=3, batch_size=6)) == len(shards[1])


def test_files_give_what_memory_gives(folder):
    """Both paths, workers or not, shuffled and augmented, and from the middle of an epoch."""
    options = {"root": str(folder), "download": False, "image_size": 8}
    memory, disk = (image_folder(memory_budget=budget, **options).train for budget in (10**6, 0))
    assert isinstance(memory.pixels, torch.Tensor)
    assert not isinstance(disk.pixels, torch.Tensor)
    options = {"normalisation": NORMALISATION, "batch_size": 4, "shuffle": True, "augment": AUGMENT}
    expected = list(DeviceLoader(images=memory, **options))
    for workers in (0, 2):
        state = torch.random.get_rng_state()
        assert same(list(DeviceLoader(images=disk, num_workers=workers, **options)), expected)
        assert torch.equal(torch.random.get_rng_state(), state)
    resumed = DeviceLoader(images=disk, **options)
    resumed.load_state_dict({**resumed.state_dict(), "position": 1})
    assert same(list(resumed), expected[1:])


def test_messages():
    with pytest.raises(ValueError, match="batch_size=0: a number >= 1 is needed"):
        loader(batch_size=0)
    with pytest.raises(ValueError, match="batch_size=8: cannot be shared equally by 3 ranks"):
        loader(world_size=3)


@pytest.mark.gpu
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_gpu_sees_what_the_cpu_sees(shuffle):
    images = numbered(50)
    on = [
        list(
            DeviceLoader(
                images=images.to(torch.device(device)),
                normalisation=NORMALISATION,
                batch_size=8,
                shuffle=shuffle,
                augment=AUGMENT if shuffle else None,
            )
        )
        for device in ("cpu", "cuda")
    ]
    for (x, y), (u, v) in zip(*on, strict=True):
        assert u.is_cuda and v.is_cuda
        assert torch.equal(y, v.cpu())
        torch.testing.assert_close(x, u.cpu(), rtol=0, atol=1e-6)  # a fused multiply-add rounds once
