"""Tar shards of the WebDataset layout: written once, read in any order, by any number."""

from datamodules.shards.order import ShardOrder
from datamodules.shards.samples import ShardSamples, Split, find_shards
from datamodules.shards.writer import Written, write_shards

__all__ = ["ShardOrder", "ShardSamples", "Split", "Written", "find_shards", "write_shards"]
