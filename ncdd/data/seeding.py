"""One seed, many independent random streams: every draw is a pure function of (seed, stream, epoch, step)."""

import torch

# One constant a purpose, so that, say, the validation split and the label noise of one seed are unrelated.
SHUFFLE, AUGMENT, SPLIT, SUBSET, IMBALANCE, RANDOM_LABELS, LABEL_NOISE = range(7)

_MASK = 2**64 - 1


def fold_in(*values: int) -> int:
    """Mix integers into one of 32 bits: SplitMix64's finaliser (Steele, Lea & Flood 2014), folded over `values`.

    32 bits because that is all of a seed that torch's CPU generator (mt19937) uses: without the mixing, seeds that
    differ only in higher bits would give the same stream.
    """
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 32


def generator(seed: int, stream: int, *counters: int) -> torch.Generator:
    """A generator on the CPU, whatever the device of the data, so that the stream is the same on every machine."""
    return torch.Generator().manual_seed(fold_in(seed, stream, *counters))
