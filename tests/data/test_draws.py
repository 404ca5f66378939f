"""Real batches of a distillation: balanced or shuffled, a pure function of the seed and the step."""

from itertools import islice

import pytest
import torch

from ncdd.data.draws import DrawLoader, Sampling
from ncdd.data.images import Images, Normalisation

COUNTS = (7, 3, 5)
LABELS = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))[torch.randperm(15, generator=torch.Generator())]
# each image's pixels tell which one it is
IMAGES = Images(torch.arange(15, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), LABELS)
UNIT = Normalisation((0.0,), (1 / 255,))


def loader(steps: int = 4, seed: int = 0, **sampling: int) -> DrawLoader:
    return DrawLoader(
        images=IMAGES, normalisation=UNIT, sampling=Sampling(**sampling), steps=steps, seed=seed, num_workers=0
    )


def drawn(of: DrawLoader, epochs: int = 1) -> list[list[int]]:
    """The images of each step, by number."""
    return [x[:, 0, 0, 0].round().int().tolist() for _ in range(epochs) for x, _ in of]


def test_balanced_batches_have_so_many_of_each_class_and_none_twice():
    for x, y in loader(per_class=4):
        assert y.bincount().tolist() == [4, 3, 4]
        assert y.tolist() == sorted(y.tolist())
        numbers = x[:, 0, 0, 0].round().long()
        assert len(set(numbers.tolist())) == 11
        assert torch.equal(LABELS[numbers], y)
    first, second, *_ = drawn(loader(per_class=4))
    assert first != second


def test_shuffled_batches_take_all_before_any_twice():
    steps = drawn(loader(steps=9, batch_size=5))
    for start in (0, 3, 6):
        assert sorted(i for step in steps[start : start + 3] for i in step) == list(range(15))
    assert steps[:3] != steps[3:6]


def test_what_does_not_fill_a_batch_is_left_for_another_order():
    steps = drawn(loader(steps=4, batch_size=7))
    assert [len(step) for step in steps] == [7] * 4
    for start in (0, 2):
        assert len(set(steps[start]) | set(steps[start + 1])) == 14


def test_a_batch_of_more_than_there_are_is_all():
    assert sorted(drawn(loader(steps=1, batch_size=99))[0]) == list(range(15))


@pytest.mark.parametrize("sampling", [{"per_class": 2}, {"batch_size": 4}])
def test_a_step_depends_on_nothing_but_the_seed_and_its_number(sampling):
    """Epochs of 2 or of 6 steps, in one go or not: step t is the same; another seed is not."""
    long = drawn(loader(steps=6, **sampling))
    assert drawn(loader(steps=2, **sampling), epochs=3) == long
    assert drawn(loader(steps=6, seed=1, **sampling)) != long
    torch.manual_seed(5)
    assert drawn(loader(steps=6, **sampling)) == long
    later = loader(steps=2, **sampling)
    later.set_epoch(2)
    assert drawn(later) == long[4:]


@pytest.mark.parametrize("sampling", [{"per_class": 2}, {"batch_size": 4}])
def test_it_goes_on_in_the_middle_of_an_epoch(sampling):
    whole = drawn(loader(steps=5, **sampling), epochs=2)
    first = loader(steps=5, **sampling)
    list(first)
    begun = [x for x, _ in islice(iter(first), 3)]
    second = loader(steps=5, **sampling)
    second.load_state_dict(first.state_dict())
    assert [x[:, 0, 0, 0].round().int().tolist() for x in begun] + drawn(second) == whole[5:]


@pytest.mark.parametrize("given", [{}, {"per_class": 1, "batch_size": 1}, {"per_class": 0}, {"batch_size": -1}])
def test_one_of_the_two_is_needed(given):
    with pytest.raises(ValueError, match=r"per_class=.*, batch_size=.*: one of them, a number >= 1, is needed"):
        Sampling(**given)
