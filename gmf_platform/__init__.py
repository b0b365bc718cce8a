"""Train, evaluate and ship GroupMixFormer."""

__version__ = "0.1.0"
