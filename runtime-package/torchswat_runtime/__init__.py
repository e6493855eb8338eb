"""Pruned networks for inference without torch: the files that `torchswat.save` writes, on numpy arrays.

network = torchswat_runtime.load("network.safetensors")
scores = network(images)  # float32, (N, C, H, W)
"""

from torchswat_runtime.runtime.arrays import Network, load

__all__ = ["Network", "__version__", "load"]
__version__ = "0.1.0.dev0"
