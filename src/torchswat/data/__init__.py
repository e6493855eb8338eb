"""Images with labels: data sets by name, and batches of them. Independent of sparsity.

`load` reads a set into two splits, `Batches` iterates over one; `names`, `info` and `check` are for lists of
what there is. Nothing is downloaded, nothing from outside is executed.
"""

from torchswat.data.augment import CentreCrop, RandomCrop, RandomResizedCrop
from torchswat.data.batches import Batches
from torchswat.data.dataset import Dataset, Images, Pictures, Split
from torchswat.data.registry import Status, check, data_root, info, load, names, state
from torchswat.data.source import File, Source

__all__ = [
    "Batches",
    "CentreCrop",
    "Dataset",
    "File",
    "Images",
    "Pictures",
    "RandomCrop",
    "RandomResizedCrop",
    "Source",
    "Split",
    "Status",
    "check",
    "data_root",
    "info",
    "load",
    "names",
    "state",
]
