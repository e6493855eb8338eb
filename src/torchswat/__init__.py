"""Sparse Weight Activation Training (SWAT) for PyTorch.

>>> import torch, torchswat
>>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 10))
>>> model = torchswat.sparsify_(model, algorithm="swat", sparsity=0.8)
>>> model(torch.randn(4, 3, 8, 8)).sum().backward()  # ... and train as ever
>>> model = torchswat.desparsify_(torchswat.prune_(model))  # a pruned, plain torch model
"""

from torchswat import models
from torchswat.convert import Sparsity, desparsify_, prune_, sparsify_
from torchswat.cost import cost
from torchswat.selection import select

__all__ = ["Sparsity", "cost", "desparsify_", "models", "prune_", "select", "sparsify_"]
__version__ = "0.1.0.dev0"
