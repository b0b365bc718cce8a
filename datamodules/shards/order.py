"""An order of samples in tar shards that is random and reads the files nearly in sequence."""

import numpy as np
import numpy.typing as npt

from gmf_platform.distributed.order import SampleKey, SampleOrder

__all__ = ["ShardOrder"]

Numbers = npt.NDArray[np.int64]


class ShardOrder(SampleOrder):
    """The endless sequence of samples of a run, in blocks of neighbours.

    In each epoch the shards are shuffled and dealt into groups; in a group all shards are cut
    into blocks of samples that lie side by side, and the blocks are shuffled. A rank's part of a
    batch is a slice of the sequence, hence a few such blocks: of ImageNet in 285 shards, 128
    images are 5 runs of mostly 3.5 MB in place of 128 reads of 0.1 MB, and 1000 images touch 8
    shards in place of 276. The cuts move from epoch to epoch, so that no two samples always come
    together: of those in a batch of 128, 13 % meet again in the next epoch.

    Like SampleOrder it is a function of (seed, position) alone: an epoch holds each sample once,
    any number of processes shares the sequence, and a run goes on at any position.

    A block is a random choice of samples if the shards were written in random order. Shuffling
    once when writing, and blocks when reading, is the way of Livne et al., Corgi2 (arXiv
    2309.01640), who find it to train like full shuffling; they also mix the blocks in a buffer.

    Args:
        counts: samples in each shard; sample numbers run through the shards one after the other.
        seed: the run's seed.
        block: samples in a block.
        group: shards that are open at a time, per epoch as evenly as they go.
    """

    def __init__(self, counts: Numbers, *, seed: int, block: int = 32, group: int = 8) -> None:
        super().__init__(int(counts.sum()), seed=seed)
        self.counts, self.block, self.group = counts, block, group

    def __getitem__(self, position: int) -> SampleKey:
        """The sample at a position of the endless sequence."""
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._permutation, self._epoch = self._arrange(epoch), epoch
        return SampleKey(epoch, int(self._permutation[offset]))

    def _arrange(self, epoch: int) -> Numbers:
        generator = np.random.default_rng((self.seed, epoch))
        shards = generator.permutation(len(self.counts))
        firsts = np.cumsum(self.counts) - self.counts
        blocks = []
        for group in np.array_split(shards, -(-len(shards) // self.group)):
            cut = [_cut(int(firsts[s]), int(self.counts[s]), self.block, generator) for s in group]
            blocks.append(generator.permutation(np.concatenate(cut)))
        return _samples(np.concatenate(blocks))


def _cut(first: int, count: int, block: int, generator: np.random.Generator) -> Numbers:
    """Cut ``count`` samples from ``first`` on into blocks (B, 2) of first and end."""
    inner = np.arange(int(generator.integers(1, block + 1)), count, block)
    edges = first + np.concatenate(([0], inner, [count]))
    return np.stack((edges[:-1], edges[1:]), axis=1)


def _samples(blocks: Numbers) -> Numbers:
    """The samples of blocks (B, 2) of first and end, one block behind the other."""
    lengths = blocks[:, 1] - blocks[:, 0]
    places = np.cumsum(lengths) - lengths
    return np.repeat(blocks[:, 0] - places, lengths) + np.arange(int(lengths.sum()))
