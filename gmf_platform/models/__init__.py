"""Plain PyTorch models: backbones, necks, heads, and the loading of weights."""
