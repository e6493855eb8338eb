"""Small networks as users write them, against the emulation."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from comparing import Setting, check_network
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IMAGES = (8, 3, 12, 12)
VECTORS = (8, 24)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def conv(inputs: int, outputs: int, size: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Network(nn.Module):
    """A network whose forward is a function of its modules."""

    def __init__(self, flow: Callable[[Network, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.flow = flow
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(self, x)


def functional() -> nn.Module:
    def flow(m, x):
        x = F.max_pool2d(F.relu(m.a(x)), 2)
        x = F.relu(F.batch_norm(m.b(x), None, None, training=True))
        return m.c(F.adaptive_avg_pool2d(x, 1).flatten(1))

    return Network(flow, a=conv(3, 8), b=conv(8, 16), c=nn.Linear(16, 10))


def shared_relu() -> nn.Module:
    def flow(m, x):
        x = m.relu(m.norm_a(m.a(x)))
        y = m.norm_b(m.b(x))
        y += x
        return m.head(m.relu(y))

    return Network(
        flow,
        a=conv(3, 8, bias=False),
        norm_a=nn.BatchNorm2d(8),
        b=conv(8, 8, bias=False),
        norm_b=nn.BatchNorm2d(8),
        relu=nn.ReLU(inplace=True),
        head=nn.Sequential(*head(8)),
    )


def out_of_place_sum() -> nn.Module:
    def flow(m, x):
        x = m.first(x)
        return m.head(F.relu(x + m.block(x)))

    block = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8))
    first = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU())
    return Network(flow, first=first, block=block, head=nn.Sequential(*head(8)))


def norm_read_twice() -> nn.Module:
    """What leaves the batch norm goes through the ReLU and around it."""

    def flow(m, x):
        y = m.norm(m.a(x))
        return m.head(torch.cat([m.relu(y), m.b(y)], 1))

    modules = {"a": conv(3, 8), "norm": nn.BatchNorm2d(8), "relu": nn.ReLU(), "b": conv(8, 8)}
    return Network(flow, **modules, head=nn.Sequential(*head(16)))


def changed_in_place() -> nn.Module:
    """The output of the batch norm is edited before it is read."""

    def flow(m, x):
        y = m.norm(m.a(x))
        y.mul_(2).clamp_(max=1.5)
        y = m.b(F.relu_(y))
        return m.head(y)

    modules = {"a": conv(3, 8), "norm": nn.BatchNorm2d(8), "b": conv(8, 8)}
    return Network(flow, **modules, head=nn.Sequential(*head(8)))


def concatenated() -> nn.Module:
    def flow(m, x):
        features = [m.first(x)]
        for layer in m.layers:
            features.append(layer(torch.cat(features, 1)))
        return m.head(torch.cat(features, 1))

    layers = nn.ModuleList(
        nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(inplace=True), conv(8 + 4 * i, 4, bias=False))
        for i in range(3)
    )
    return Network(flow, first=conv(3, 8), layers=layers, head=nn.Sequential(*head(20)))


def skip_connections() -> nn.Module:
    """Down, up and across, as a U-Net; the transposed convolution stays dense."""

    def flow(m, x):
        fine = F.relu(m.down(x))
        coarse = F.relu(m.low(F.avg_pool2d(fine, 2)))
        return m.head(m.out(torch.cat([fine, m.up(coarse)], 1)))

    modules = {"down": conv(3, 8), "low": conv(8, 8), "out": conv(16, 8)}
    modules["up"] = nn.ConvTranspose2d(8, 8, 2, 2)
    return Network(flow, **modules, head=nn.Sequential(*head(8)))


def group_norm() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), nn.SiLU(), conv(8, 8, groups=8), nn.GELU(), *head(8))


def odd_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0), padding_mode="reflect"),
        nn.LeakyReLU(),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=2),
        nn.Hardtanh(),
        nn.Conv2d(8, 6, 1, bias=False),
        *head(6),
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
        *head(8),
    )


def one_dimensional() -> nn.Module:
    """Conv1d stays dense; the Linear behind it is sparse."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 24)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 22, 10)
    )


def tied_weights() -> nn.Module:
    network = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))
    network[2].weight = network[0].weight
    return network


def module_used_twice() -> nn.Module:
    def flow(m, x):
        return m.out(F.relu(m.inner(F.relu(m.inner(x)))))

    return Network(flow, inner=nn.Linear(24, 24), out=nn.Linear(24, 10))


def module_under_two_names() -> nn.Module:
    layer = conv(8, 8)
    twice = [layer, nn.BatchNorm2d(8), nn.ReLU(), layer, nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(conv(3, 8), nn.ReLU(), *twice, *head(8))


def checkpointed(use_reentrant: bool) -> nn.Module:
    def flow(m, x):
        x = m.first(x)
        x = checkpoint(m.middle, x, use_reentrant=use_reentrant)
        return m.head(x)

    middle = nn.Sequential(conv(8, 8), nn.GroupNorm(2, 8), nn.ReLU(), conv(8, 8))
    return Network(flow, first=conv(3, 8), middle=middle, head=nn.Sequential(*head(8)))


def attention() -> nn.Module:
    """The projections into an attention are no Linear layers, and that out of it is of a subclass."""

    def flow(m, x):
        tokens = m.embed(x.view(-1, 6, 4))
        tokens = tokens + m.attention(tokens, tokens, tokens, need_weights=False)[0]
        return m.out(tokens.mean(1))

    attend = nn.MultiheadAttention(16, 2, batch_first=True)
    return Network(flow, embed=nn.Linear(4, 16), attention=attend, out=nn.Linear(16, 10))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)

    def flow(m, x):
        return m.out(m.encoder(m.embed(x.view(-1, 6, 4))).mean(1))

    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Network(flow, embed=nn.Linear(4, 16), encoder=stack, out=nn.Linear(16, 10))


def recurrent() -> nn.Module:
    """A Linear layer on every output of a dense LSTM."""

    def flow(m, x):
        states, _ = m.lstm(x.view(-1, 6, 4))
        return m.out(F.relu(m.each(states))[:, -1])

    return Network(flow, lstm=nn.LSTM(4, 8, batch_first=True), each=nn.Linear(8, 12), out=nn.Linear(12, 10))


OF_IMAGES: dict[str, Callable[[], nn.Module]] = {
    builder.__name__: builder
    for builder in (
        functional,
        shared_relu,
        out_of_place_sum,
        norm_read_twice,
        changed_in_place,
        concatenated,
        skip_connections,
        group_norm,
        odd_convolutions,
        pooled,
        module_under_two_names,
    )
}
OF_IMAGES |= {
    "checkpointed": lambda: checkpointed(use_reentrant=False),
    "checkpointed reentrant": lambda: checkpointed(use_reentrant=True),
}
OF_VECTORS: dict[str, Callable[[], nn.Module]] = {
    builder.__name__: builder
    for builder in (one_dimensional, tied_weights, module_used_twice, attention, encoder, recurrent)
}


@pytest.mark.filterwarnings("ignore:.*of subclasses of Conv2d or Linear:UserWarning")  # in the attentions
@pytest.mark.parametrize("name", [*OF_IMAGES, *OF_VECTORS])
def test_it_trains_as_the_paper_says(name: str, setting: Setting):
    if name in OF_IMAGES:
        check_network(OF_IMAGES[name], IMAGES, setting)
    else:
        check_network(OF_VECTORS[name], VECTORS, setting)
