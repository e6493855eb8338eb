"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum whose singular values are made one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial ``a x + b x^3 + c x^5`` that the iteration applies to singular values (there, "Muon")."""

ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon for some groups of parameters, stochastic gradient descent for the others, in one optimizer.

    Momentum is that of `torch.optim.SGD` in all groups. In a group with ``orthogonalize=True`` every tensor is
    a matrix of ``len(tensor)`` rows (convolutions: a row a filter). It is first scaled to the Frobenius norm
    ``sqrt(len(tensor))``, rows of norm one on average, and then moved by the learning rate times
    `orthogonalized` momentum, so its learning rate is relative to the weights.

    Parameters
    ----------
    params : iterable of Tensor or of dict
        As for any optimizer; each dict may set what follows, and ``orthogonalize``.
    lr : float, default 0.02
        Learning rate.
    momentum : float, default 0.95
        In [0, 1).
    nesterov : bool, default True
        Whether the gradient is added to the momentum once more.
    weight_decay : float, default 0
        Added to the gradient, times the weights.
    orthogonalize : bool, default True
        Whether the group is Muon's; False: stochastic gradient descent.

    References
    ----------
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
    kellerjordan.github.io/posts/muon; the scaling of the filters is that of its CIFAR-10 speed record.

    Examples
    --------
    >>> layer = torch.nn.Conv2d(3, 8, 3)
    >>> optimizer = Muon([
    ...     {"params": [layer.weight], "lr": 0.24, "momentum": 0.6},
    ...     {"params": [layer.bias], "lr": 0.1, "orthogonalize": False},
    ... ])
    >>> layer(torch.randn(2, 3, 8, 8)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        orthogonalize: bool = True,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "orthogonalize": orthogonalize,
            },
        )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Change the parameters once; `closure`, where given, computes the loss anew and is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._change(parameter, group)
        return loss

    def _change(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        update = gradient.add(velocity, alpha=group["momentum"]) if group["nesterov"] else velocity
        if group["orthogonalize"]:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp_min(1e-12))
            update = orthogonalized(update.flatten(1)).view(update.shape)
        parameter.add_(update, alpha=-group["lr"])


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of `matrix` whose singular values are about one.

    Newton-Schulz iterations with a quintic polynomial: singular values of at least a hundredth of the
    Frobenius norm end between 0.68 and 1.14, smaller ones at most at 1.21.

    Parameters
    ----------
    matrix : Tensor of shape (M, N), floating point

    Returns
    -------
    Tensor of the same shape and dtype

    Examples
    --------
    >>> matrix = torch.randn(20, 100, generator=torch.Generator().manual_seed(0))
    >>> values = torch.linalg.svdvals(orthogonalized(matrix))
    >>> bool(((values > 0.68) & (values < 1.14)).all())
    True
    """
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    x = wide / wide.norm().clamp_min(1e-7)  # no singular value above one
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T.contiguous() if wide is not matrix else x
