from __future__ import annotations
from torchswat.runtime import plain
class Sessions:
    def __init__(self, graph, tensors):
        self.graph, self.tensors = graph, tensors
    def run(self, x):
        return plain.run(self.graph, self.tensors, x)
