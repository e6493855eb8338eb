"""Which entries of a tensor are kept: the Top-K operation of SWAT.

Kept are the ``k = n - floor(S * n)`` largest entries by absolute value (at least one), counted over a
*scope*: the whole tensor, each filter or sample, or each kernel or channel map (Figure 3 of the paper).
Finding the k-th largest absolute value is the whole cost of it (section 3.2, "Efficient Top-K
Implementation"), so the ways of finding it stand side by side in `METHODS`, and `Selector` adds the
paper's own saving: a threshold kept for several iterations.

Exact selection keeps exactly ``k``; among equals at the threshold the lowest indices win, so a run can be
repeated. A NaN is an error, never a silent mask.
"""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor

from torchswat.engine import state as state_words
from torchswat.engine import topk
from torchswat.engine.arguments import kept_count
from torchswat.engine.state import new_state
from torchswat.engine.topk import Selection
from torchswat.errors import InvalidValue, NotFinite, UnknownName

SCOPES = ("nchw", "chw", "hw")
"""Over what ``k`` is counted, from the loosest to the strictest: the whole tensor, each entry of the first
dimension (filter or sample), each entry of the first two (kernel or channel map)."""

_SAMPLE_SIZE = 16384  # a density error of about 0.3 points at a fifth kept, for a tenth of a millisecond
_HISTOGRAM_BITS = 11
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


# ---- finding the k-th largest: (rows, n) non-negative magnitudes -> (rows,) thresholds ---------------------


def _by_sort(magnitudes: Tensor, k: int) -> Tensor:
    return magnitudes.sort(dim=1, descending=True).values[:, k - 1]


def _by_histogram(magnitudes: Tensor, k: int) -> Tensor:
    """Find it digit by digit in the float's bits, which order non-negative floats like integers.

    Each pass counts one digit of the entries that share the digits found so far; the first pass reads
    everything, the later ones only what fell into one bucket.
    """
    if magnitudes.shape[1] < 1 << _HISTOGRAM_BITS:  # a row shorter than its histogram is sorted sooner
        return _by_sort(magnitudes, k)
    keys = magnitudes.contiguous().view(_BITS[magnitudes.dtype])
    found = [_kth_key(row, k) for row in keys]
    return torch.tensor(found, dtype=keys.dtype, device=keys.device).view(magnitudes.dtype)


def _kth_key(keys: Tensor, k: int) -> int:
    prefix, bits = 0, 8 * keys.element_size() - 1  # the sign bit is zero
    while bits > 0:
        digit_bits = min(_HISTOGRAM_BITS, bits)
        bits -= digit_bits
        digits = (keys >> bits) & ((1 << digit_bits) - 1)
        at_least = torch.bincount(digits, minlength=1 << digit_bits).flip(0).cumsum(0).flip(0)
        digit = int((at_least >= k).sum()) - 1  # the highest digit with k entries at or above it
        k -= int(at_least[digit + 1]) if digit + 1 < len(at_least) else 0
        keys = keys[digits == digit]
        prefix = prefix << digit_bits | digit
    return prefix


def _median_of_medians(values: Tensor) -> Tensor:
    """Return a pivot with at least three tenths of the values on either side (Blum et al. 1973)."""
    while len(values) > 5:
        whole = len(values) // 5 * 5
        values = values[:whole].view(-1, 5).median(dim=1).values
    return values.median()


def _middle(values: Tensor) -> Tensor:
    return values[len(values) // 2]


def _by_pivots(pivot_of: Callable[[Tensor, int, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Make a selection that partitions around pivots (Hoare 1961, FIND) from a rule that chooses them."""

    def find(values: Tensor, k: int) -> Tensor:
        n = len(values)
        for rounds in range(n):
            pivot = pivot_of(values, rounds, n)
            above = values > pivot
            larger = int(above.sum())
            if k <= larger:
                values = values[above]
                continue
            equal = int((values == pivot).sum())
            if k <= larger + equal:
                return pivot
            values, k = values[values < pivot], k - larger - equal
        raise AssertionError("every round removes its pivot")

    return lambda magnitudes, k: torch.stack([find(row, k) for row in magnitudes])


_by_quickselect = _by_pivots(lambda values, rounds, n: _middle(values))
_by_median_of_medians = _by_pivots(lambda values, rounds, n: _median_of_medians(values))
_by_introselect = _by_pivots(
    # Musser 1997: as quickselect, until it has taken twice the rounds a good run would need
    lambda values, rounds, n: _middle(values) if rounds < 2 * n.bit_length() else _median_of_medians(values)
)


def _by_sample(magnitudes: Tensor, k: int) -> Tensor:
    """Estimate it from a fixed, evenly scattered sample: no random state, so a run can be repeated."""
    n = magnitudes.shape[1]
    if n <= _SAMPLE_SIZE:
        return _by_histogram(magnitudes, k)
    stride = round(n * 0.6180339887498949) | 1  # golden-ratio steps visit a range evenly
    positions = torch.arange(_SAMPLE_SIZE, device=magnitudes.device) * stride % n
    return _by_histogram(magnitudes[:, positions], max(1, round(k * _SAMPLE_SIZE / n)))


METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "histogram": _by_histogram,
    "sort": _by_sort,
    "quickselect": _by_quickselect,
    "median-of-medians": _by_median_of_medians,
    "introselect": _by_introselect,
    "sample": _by_sample,
}
"""Ways of finding the k-th largest magnitude. All are exact but ``sample``, which estimates it from 16,384
entries (exact where there are fewer)."""

APPROXIMATE = frozenset({"sample"})


# ---- from a tensor and a scope to rows and back ------------------------------------------------------------


def _leading(tensor: Tensor, scope: str) -> int:
    """Return how many leading dimensions separate the rows of `scope`."""
    if tensor.dim() > 2:
        return {"nchw": 0, "chw": 1, "hw": 2}[scope]
    return int(tensor.dim() == 2 and scope != "nchw")


def _rows(magnitudes: Tensor, leading: int) -> Tensor:
    """View as (rows, entries of a row); the order within a row is memory's where that saves a copy."""
    if leading == 0:
        by_stride = sorted(range(magnitudes.dim()), key=magnitudes.stride, reverse=True)
        return magnitudes.permute(by_stride).reshape(1, -1)
    return magnitudes.flatten(leading).flatten(0, leading - 1)


def kth_largest(
    tensor: Tensor, k: int, *, scope: str = "nchw", method: str = "histogram", name: str = "tensor"
) -> Tensor:
    """Return the k-th largest absolute value of each row of a scope.

    Parameters
    ----------
    tensor : Tensor
        Floating point, any shape, strides and device.
    k : int
        Rank from the largest, 1 to the number of entries of a row.
    scope : {"nchw", "chw", "hw"}
        What a row is; see `SCOPES`.
    method : str
        One of `METHODS`.
    name : str
        What to call the tensor in an error message.

    Returns
    -------
    Tensor
        In the dtype of `tensor`, shaped to broadcast against it.

    Raises
    ------
    NotFinite
        Where the tensor has a NaN.
    InvalidValue, UnknownName
        For a rank out of range, a dtype that is not floating point, an unknown scope or method.

    Examples
    --------
    >>> kth_largest(torch.tensor([[1., -4.], [3., 2.]]), 2)
    tensor([[3.]])
    """
    _check_names(scope, method)
    if tensor.dtype not in _BITS:
        raise InvalidValue(
            f"{name} has dtype {tensor.dtype}; allowed are {', '.join(str(d) for d in _BITS)}."
        )
    leading = _leading(tensor, scope)
    rows = _rows(tensor.detach().abs(), leading)
    if not 1 <= k <= rows.shape[1]:
        raise InvalidValue(
            f"k = {k} of {name}, whose rows (scope {scope!r}) have {rows.shape[1]} entries; "
            "allowed is 1 to that."
        )
    if rows.amax().isnan():
        raise _not_a_number(tensor.numel(), name)
    thresholds = METHODS[method](rows, k)
    return thresholds.view([*tensor.shape[:leading], *[1] * (tensor.dim() - leading)])


def _exactly(tensor: Tensor, threshold: Tensor, k: int, scope: str) -> Tensor:
    """Return the mask of exactly `k` entries a row, given the k-th largest: ties go to the lowest index."""
    magnitudes = tensor.detach().abs()
    mask = magnitudes >= threshold
    leading = _leading(tensor, scope)
    counts = _rows(mask, leading).count_nonzero(dim=1)
    if bool((counts == k).all()):
        return mask
    above = (magnitudes > threshold).flatten(leading)  # from here on in logical order
    ties = (magnitudes == threshold).flatten(leading)
    missing = k - above.count_nonzero(dim=-1).unsqueeze(-1)
    if leading == 0:  # one row: fewer bytes to list the ties than to count along all entries
        above[ties.nonzero()[: int(missing), 0]] = True
    else:
        above |= ties & (ties.cumsum(dim=-1, dtype=torch.int32) <= missing)
    return mask.copy_(above.view(tensor.shape))  # in the memory layout of the tensor


def keep_largest(
    tensor: Tensor, k: int, *, scope: str, method: str, exact: bool = True, name: str = "tensor"
) -> tuple[Tensor, Selection]:
    """Return the k-th largest magnitude of each row and the selection of what is kept.

    It keeps exactly `k` entries a row where that is asked for and the method is exact, otherwise all entries
    at or above the threshold. The compiled kernels do the common case.
    """
    exact = exact and method not in APPROXIMATE
    leading = _leading(tensor, scope)
    if leading and method == "histogram":
        rows = topk.kth_largest_rows(tensor, k, leading)
        if rows is not None:
            return _of_rows(tensor, k, leading, rows, exact, name)
    found = None
    if leading == 0 and method == "histogram":
        found = topk.kth_largest(tensor, k)
    elif leading == 0 and method == "sample":
        sampled = topk.sampled_threshold(tensor, k, _SAMPLE_SIZE)
        found = None if sampled is None else topk.count_kept(tensor, sampled)
    if found is None:
        threshold = kth_largest(tensor, k, scope=scope, method=method, name=name)
        mask = _exactly(tensor, threshold, k, scope) if exact else tensor.detach().abs() >= threshold
        return threshold, Selection(mask)
    if found.not_a_number:
        raise _not_a_number(tensor.numel(), name)
    threshold = tensor.new_full([1] * tensor.dim(), found.value)
    if not exact or found.greater + found.equal == k:
        return threshold, Selection(threshold=found.value, count=found.greater + found.equal)
    return threshold, _without_ties(tensor, found, k)


def _of_rows(
    tensor: Tensor, k: int, leading: int, found: topk.FoundRows, exact: bool, name: str
) -> tuple[Tensor, Selection]:
    """Return thresholds and the selection of each row, given what the kernel found."""
    if found.not_a_number:
        raise _not_a_number(tensor.numel(), name)
    ties = k - found.greater if exact else found.equal
    mask = topk.marked_rows(tensor, leading, found, ties)
    count = int((found.greater + ties).sum())
    return topk.by_row(found.values, tensor, leading), Selection(mask, count=count)


def _without_ties(tensor: Tensor, found: topk.Found, k: int) -> Selection:
    """Return the selection of exactly `k` entries of a whole tensor, given what the kernel found."""
    mask = topk.marked(tensor, found.value, k - found.greater)
    if mask is None:
        mask = _exactly(tensor, tensor.new_full([1] * tensor.dim(), found.value), k, "nchw")
    return Selection(mask, count=k)


def _not_a_number(entries: int, name: str) -> NotFinite:
    return NotFinite(
        f"{name} has NaN among its {entries} entries; a selection by magnitude is undefined there."
    )


def select(tensor: Tensor, sparsity: float, scope: str = "nchw", method: str = "histogram") -> Tensor:
    """Return the mask of the entries that Top-K keeps.

    Exact methods keep exactly ``k = n - floor(sparsity * n)`` of the ``n`` entries of every row of the scope,
    at least one; among equals the lowest index (in the order of the shape, whatever the strides) is kept.
    ``sample`` keeps all entries at or above an estimated threshold.

    Parameters
    ----------
    tensor : Tensor
        Floating point (16, 32 or 64 bits), any shape, strides and device. Infinities are the largest values.
    sparsity : float
        Fraction set to zero, in [0, 1).
    scope : {"nchw", "chw", "hw"}, default "nchw"
        The whole tensor, each filter or sample, each kernel or channel map. Of a matrix ``chw`` and ``hw``
        both mean each row.
    method : str, default "histogram"
        How the k-th largest magnitude is found: one of `METHODS`.

    Returns
    -------
    Tensor
        bool, in the shape of `tensor`; True is kept.

    Raises
    ------
    InvalidValue, UnknownName
        For a sparsity outside [0, 1), an unknown scope or method, a dtype that is not floating point.
    NotFinite
        Where the tensor has a NaN.

    References
    ----------
    SWAT: Raihan and Aamodt 2020, arXiv:2001.01969v1, section 2.2 ("Top-K Selection", Figure 3) and section 3.2.

    Examples
    --------
    >>> select(torch.tensor([3., -1., 2., -2.]), sparsity=0.5)
    tensor([ True, False,  True, False])
    """
    check_sparsity(sparsity)
    _check_names(scope, method)
    entries = math.prod(tensor.shape[_leading(tensor, scope) :])
    if tensor.numel() == 0 or sparsity == 0:
        return torch.ones_like(tensor, dtype=torch.bool)
    k = kept_count(entries, sparsity)
    return keep_largest(tensor, k, scope=scope, method=method)[1].mask_of(tensor)


def check_sparsity(sparsity: object, where: str = "sparsity") -> float:
    """Return `sparsity` as a float in [0, 1) or raise `InvalidValue`."""
    number = float(sparsity) if isinstance(sparsity, Real) and not isinstance(sparsity, bool) else math.nan
    if not 0 <= number < 1:
        raise InvalidValue(
            f"{where} is {sparsity!r}; allowed is a number from 0 (dense) to below 1, "
            "the fraction of entries set to zero. For 80% write 0.8."
        )
    return number


def _check_names(scope: str, method: str) -> None:
    if scope not in SCOPES:
        raise UnknownName.of("scope", scope, SCOPES)
    if method not in METHODS:
        raise UnknownName.of("method", method, METHODS)


# ---- over the iterations of a training ---------------------------------------------------------------------


@dataclass
class Selector:
    """The selection of one operand of one layer over the iterations of a training.

    It searches the k-th largest when a search is due and keeps ``|t| >= threshold`` between searches, the
    paper's own saving (section 3.2, Figure 6b). With ``period=1`` every selection is a search. Where the whole
    tensor is the scope, the layer's operation does the same by itself and leaves its numbers in `state`.

    Parameters
    ----------
    scope, method : str
        As in `select`.
    exact : bool, default True
        Keep exactly ``k`` at a search. Otherwise all entries at or above the threshold, so that equal ones
        stay together (as the code published with the later SWAT paper does).
    period : int, default 1
        Iterations from one search to the next.
    warmup : int, default 0
        Iterations at the start of training that search every time, whatever the period.
    random : bool, default False
        Keep ``k`` entries drawn uniformly, anew in each iteration: the paper's null hypothesis. Draws depend on
        the seed in `state`, the name of the tensor and the iteration alone, so every process draws the same.
    operand : {"weight", "activation", "gradient"}
        Which operand it is, which says where in `state` its numbers stand.
    state : Tensor of shape (16,), int64
        The layer's state (`torchswat.engine.state`).
    """

    scope: str = "nchw"
    method: str = "histogram"
    exact: bool = True
    period: int = 1
    warmup: int = 0
    random: bool = False
    operand: str = "activation"
    state: Tensor = field(default_factory=new_state, repr=False)
    rows: Tensor | None = field(default=None, repr=False)
    """The last thresholds, shaped to broadcast against the tensor; None where the operation searches."""

    @property
    def in_operation(self) -> bool:
        """Whether the layer's operation selects by itself: the k largest of the whole tensor."""
        return self.scope == "nchw" and not self.random and self.method in ("histogram", "sample")

    @property
    def density(self) -> float:
        """The share that the last selection of training really kept."""
        return state_words.density(self.state, self.operand)

    @property
    def threshold(self) -> Tensor | None:
        """The last threshold, shaped to broadcast against the tensor, or None before the first search."""
        if self.rows is not None or self.operand not in state_words.OPERANDS:
            return self.rows
        found = state_words.threshold(self.state, self.operand)
        return None if found is None else torch.tensor(found)

    def __call__(
        self, tensor: Tensor, sparsity: float, iteration: int, name: str = "tensor", remember: bool = True
    ) -> Tensor:
        """Return the mask of `tensor` (bool, same shape and strides) for the `iteration`-th step of training.

        Only one that is to `remember` moves the threshold and the density.
        """
        if tensor.numel() == 0 or tensor.is_meta:
            return torch.ones_like(tensor, dtype=torch.bool)
        if self.random:
            mask = self._draw(tensor, sparsity, iteration, name)
        elif self._due(tensor, iteration):
            k = kept_count(math.prod(tensor.shape[_leading(tensor, self.scope) :]), sparsity)
            rows, selection = keep_largest(
                tensor, k, scope=self.scope, method=self.method, exact=self.exact, name=name
            )
            mask = selection.mask_of(tensor)
            if remember:
                self.rows = rows
        else:
            assert self.rows is not None
            magnitudes = tensor.detach().abs()
            if magnitudes.amax().isnan():
                raise _not_a_number(tensor.numel(), name)
            mask = magnitudes >= self.rows.to(tensor.device)
        if remember:
            state_words.put_density(self.state, self.operand, int(mask.count_nonzero()) / tensor.numel())
        return mask

    def _due(self, tensor: Tensor, iteration: int) -> bool:
        if self.rows is None or self.period == 1 or iteration < self.warmup:
            return True
        leading = _leading(tensor, self.scope)  # a last, smaller batch has other rows
        return iteration % self.period == 0 or self.rows.shape[:leading] != tensor.shape[:leading]

    def _draw(self, tensor: Tensor, sparsity: float, iteration: int, name: str) -> Tensor:
        if tensor.isnan().any():
            raise _not_a_number(tensor.numel(), name)
        seed = zlib.crc32(f"{int(self.state[state_words.SEED])} {name} {iteration}".encode())
        draw = torch.Generator(device=tensor.device).manual_seed(seed)
        noise = torch.rand(tensor.shape, device=tensor.device, dtype=torch.float32, generator=draw)
        mask = torch.empty_like(tensor, dtype=torch.bool)  # in the memory layout of the tensor
        return mask.copy_(select(noise, sparsity, self.scope))

    def forget(self) -> None:
        """Let the next selection search."""
        self.rows = None
