"""The algorithms of the paper as data: which operand of which product is made sparse.

A layer computes three products,

    Y = conv(a, w)          dX = conv_transpose(g, w)          dW = correlate(a, g)

where ``w`` is its weight, ``a`` its input activation and ``g`` the gradient of its output. An `Algorithm`
is a row of a table over their operands: each slot names how that operand is selected, or nothing. Layers,
cost model, figures and documentation all read this table; trying a variant of the paper's idea is a new
row and nothing else.

>>> import torchswat
>>> [name for name, row in torchswat.algorithms.ALGORITHMS.items() if row.forward_weight == "top-k"]
['swat', 'forward-weight']
"""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torchswat.errors import UnknownName

Slot = Literal["top-k", "random"] | None
"""How an operand is selected; None leaves it dense."""


@dataclass(frozen=True)
class Algorithm:
    """A row of the table.

    Attributes
    ----------
    name : str
        Its name.
    summary : str
        What it does, in one line.
    source : str
        The publication that it comes from.
    forward_weight : {"top-k", "random"} or None, default None
        How the weight of the forward product is selected; None leaves it dense.
    forward_activation : {"top-k", "random"} or None, default None
        The same of its activation.
    grad_input_gradient : {"top-k", "random"} or None, default None
        The same of the output gradient in the product that gives the gradient of the input.
    grad_input_weight : {"top-k", "random"} or None, default None
        The same of the weight in that product.
    grad_weight_gradient : {"top-k", "random"} or None, default None
        The same of the output gradient in the product that gives the gradient of the weight.
    grad_weight_activation : {"top-k", "random"} or None, default None
        The same of the activation in that product.
    projected_output : bool, default False
        Compute only the outputs that a random projection predicts to be largest (DSG); their mask also
        holds in the backward pass.
    skip : tuple of str, default ()
        Layers this algorithm always leaves dense, in the words of `torchswat.sparsify_`.

    References
    ----------
    SWAT, section 2, equations 1 to 3, and Algorithm 1; of each row, its `source`.

    Examples
    --------
    >>> ALGORITHMS["swat"].selects("weight"), ALGORITHMS["swat"].selects("gradient")
    (True, False)
    """

    name: str
    summary: str
    source: str
    forward_weight: Slot = None
    forward_activation: Slot = None
    grad_input_gradient: Slot = None
    grad_input_weight: Slot = None
    grad_weight_gradient: Slot = None
    grad_weight_activation: Slot = None
    projected_output: bool = False
    skip: tuple[str, ...] = ()

    def slots(self) -> dict[str, Slot]:
        """Return how each of the six operands is selected.

        Returns
        -------
        dict of str to Slot
            By name, ``<product>_<operand>``.

        Examples
        --------
        >>> [name for name, how in ALGORITHMS["saw"].slots().items() if how]
        ['grad_input_weight', 'grad_weight_activation']
        """
        return {name: getattr(self, name) for name in SLOTS}

    @property
    def is_dense(self) -> bool:
        """Whether nothing at all is selected."""
        return not self.projected_output and not any(self.slots().values())

    @property
    def is_packable(self) -> bool:
        """Whether its sparse operands are those that the engine packs: weights, and activations kept."""
        return not (self.forward_activation or self.projected_output or self.selects("gradient"))

    def selection_of(self, operand: str) -> Slot:
        """Return how an operand is selected, in whichever product that is.

        Parameters
        ----------
        operand : {"weight", "activation", "gradient"}
            Of any of the three products.

        Returns
        -------
        {"top-k", "random"} or None
            None where it is dense in all of them.

        Examples
        --------
        >>> ALGORITHMS["random"].selection_of("weight")
        'random'
        """
        return next((slot for name, slot in self.slots().items() if name.endswith(operand) and slot), None)

    def selects(self, operand: str) -> bool:
        """Return whether any product takes an operand sparse.

        Parameters
        ----------
        operand : {"weight", "activation", "gradient"}
            Of any of the three products.

        Returns
        -------
        bool

        Examples
        --------
        >>> ALGORITHMS["meprop"].selects("gradient")
        True
        """
        return self.selection_of(operand) is not None


SLOTS = (
    "forward_weight",
    "forward_activation",
    "grad_input_gradient",
    "grad_input_weight",
    "grad_weight_gradient",
    "grad_weight_activation",
)

SWAT = "Raihan and Aamodt, Sparse Weight Activation Training"

_ROWS = (
    Algorithm("dense", "ordinary back-propagation", "-"),
    Algorithm(
        "swat",
        "sparse weights forward and backward, sparse activations backward",
        f"{SWAT}, Algorithm 1",
        forward_weight="top-k",
        grad_input_weight="top-k",
        grad_weight_activation="top-k",
    ),
    Algorithm(
        "saw",
        "dense forward, sparse weights and activations backward",
        f"{SWAT}, section 2.2",
        grad_input_weight="top-k",
        grad_weight_activation="top-k",
    ),
    Algorithm(
        "meprop",
        "dense forward, sparse output gradients backward",
        "Sun et al. 2017, meProp",
        grad_input_gradient="top-k",
        grad_weight_gradient="top-k",
    ),
    Algorithm(
        "forward-activation",
        "sparse activations forward, dense backward",
        f"{SWAT}, Figure 2a",
        forward_activation="top-k",
    ),
    Algorithm(
        "forward-weight",
        "sparse weights forward, dense backward",
        f"{SWAT}, Figure 2a",
        forward_weight="top-k",
    ),
    Algorithm(
        "random",
        "swat with masks drawn at random in every iteration",
        f"{SWAT}, Figure 3",
        forward_weight="random",
        grad_input_weight="random",
        grad_weight_activation="random",
    ),
    Algorithm(
        "saw-random",
        "saw with masks drawn at random in every iteration",
        f"{SWAT}, Figure 3",
        grad_input_weight="random",
        grad_weight_activation="random",
    ),
    Algorithm(
        "dsg",
        "only the outputs that a random projection predicts to be largest",
        "Liu et al. 2019, Dynamic Sparse Graph for Efficient Deep Learning",
        projected_output=True,
        skip=("last",),  # the outputs of the last layer are the classes
    ),
)

ALGORITHMS: dict[str, Algorithm] = {row.name: row for row in _ROWS}


def algorithm(which: str | Algorithm) -> Algorithm:
    """Return the row of an algorithm.

    Parameters
    ----------
    which : str or Algorithm
        Its name, or the row itself.

    Returns
    -------
    Algorithm

    Raises
    ------
    UnknownName
        No algorithm has that name; the message holds the nearest one.

    Examples
    --------
    >>> algorithm("swat").source
    'Raihan and Aamodt, Sparse Weight Activation Training, Algorithm 1'
    """
    if isinstance(which, Algorithm):
        return which
    if not isinstance(which, str) or which not in ALGORITHMS:
        raise UnknownName.of("algorithm", which, ALGORITHMS)
    return ALGORITHMS[which]
