"""The networks of the paper, by name: plain torch modules without sparsity.

>>> import torch
>>> from torchswat import models
>>> model = models.create("resnet20")
>>> model(torch.zeros(1, 3, 32, 32)).shape
torch.Size([1, 10])
"""

from torchswat.models.registry import ModelInfo, create, info, names

__all__ = ["ModelInfo", "create", "info", "names"]
