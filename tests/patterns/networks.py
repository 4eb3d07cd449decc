"""Layer patterns as people write them, several to a network: a stem, patterns side by side behind it, logits of each.

Images are [N, 3, 8, 8]; a pattern maps [N, 8, 8, 8] to maps, sequences or vectors.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE, WIDTH, CLASSES = 8, 8, 4

Pattern = Callable[[], nn.Module]


class Patterns(nn.Module):
    """Patterns side by side; the logits of each, CLASSES at a time, stand beside those of the others."""

    def __init__(self, patterns: Mapping[str, Pattern]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.patterns = nn.ModuleDict({name: make() for name, make in patterns.items()})
        self.heads = nn.ModuleDict({name: nn.LazyLinear(CLASSES) for name in patterns})

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return torch.cat([self.heads[name](_pooled(pattern(x))) for name, pattern in self.patterns.items()], 1)


def _pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


class Apply(nn.Module):
    """A function of itself and what it reads, with the modules, parameters and buffers that it uses."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def built(patterns: Mapping[str, Pattern]) -> nn.Module:
    """A network of patterns with statistics of random images, in evaluation mode."""
    torch.manual_seed(0)
    network = Patterns(patterns).train()
    with torch.no_grad():
        for _ in range(10):
            network(torch.randn(16, 3, SIZE, SIZE))
    return network.eval()


def conv(inputs: int = WIDTH, outputs: int = WIDTH, kernel: Any = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=options.pop("padding", 1), **options)


def between(make: Pattern) -> Pattern:
    """A module between two convolutions, the first of which also yields negative values."""
    return lambda: nn.Sequential(conv(), make(), nn.LazyConv2d(WIDTH, 1))


def function(apply: Callable[[Any, Tensor], Tensor], **parts: Callable[[], nn.Module | Tensor]) -> Pattern:
    """A function, with parts that are made anew for each network."""
    return lambda: Apply(apply, **{name: make() for name, make in parts.items()})


def learned(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape) * 0.5)


def linear(inputs: int = WIDTH, outputs: int = WIDTH) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs)


def tokens(x: Tensor) -> Tensor:
    """Maps as a sequence, [N, 64, 8]."""
    return x.flatten(2).transpose(1, 2)


POOLINGS: dict[str, Pattern] = {
    "ceil": between(lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "ceil_no_padding": between(lambda: nn.AvgPool2d(3, 2, ceil_mode=True)),
    "padded": between(lambda: nn.AvgPool2d(3, 1, 1)),
    "without_padding": between(lambda: nn.AvgPool2d((2, 3), (3, 2), (1, 0), ceil_mode=True, count_include_pad=False)),
    "divisor": between(lambda: nn.AvgPool2d(3, 2, 1, divisor_override=5)),
    "not_square": between(lambda: nn.AvgPool2d((2, 3), (1, 2), (0, 1))),
    "max_ceil": between(lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "max_dilated": between(lambda: nn.MaxPool2d((3, 2), (1, 2), (1, 0), dilation=(1, 2))),
    "adaptive": between(lambda: nn.AdaptiveAvgPool2d((3, 5))),
    "adaptive_max": between(lambda: nn.AdaptiveMaxPool2d((3, None))),
    "pool1d": function(
        lambda self, x: F.adaptive_max_pool1d(F.avg_pool1d(self.conv(x.flatten(2)), 3, 2, 1), 5).flatten(1),
        conv=lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
    ),
}

CLAMPS: dict[str, Pattern] = {
    "hardtanh": between(nn.Hardtanh),
    "from_0_to_1": between(lambda: nn.Hardtanh(0, 1)),
    "other_limits": between(lambda: nn.Hardtanh(-0.5, 2.0)),
    "above_0": between(lambda: nn.Hardtanh(0.25, 2.0)),
    "relu6": between(lambda: nn.ReLU6(inplace=True)),
    "two_ends": function(lambda self, x: self.after(self.conv(x).clamp_(-0.3, 1.2)), conv=conv, after=conv),
    "lower_end": function(lambda self, x: self.after(self.conv(x).clamp(min=-0.3)), conv=conv, after=conv),
    "upper_end": function(lambda self, x: self.after(torch.clamp_max(self.conv(x), 0.7)), conv=conv, after=conv),
    "rrelu": between(nn.RReLU),
    "prelu": between(lambda: nn.PReLU(WIDTH)),
    "celu": between(lambda: nn.CELU(0.5)),
    "softplus": between(nn.Softplus),
    "mish": between(nn.Mish),
    "softshrink": between(nn.Softshrink),
    "logsigmoid": between(nn.LogSigmoid),
    "threshold": between(lambda: nn.Threshold(0.1, -0.2)),
}


class Dense(nn.Module):
    """Every layer reads all that were before, and normalises it, as in a DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), conv(width, 4)) for width in (8, 12)
        )
        self.after = conv(16)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return self.after(torch.cat(maps, 1))


READ_TWICE: dict[str, Pattern] = {
    "add": function(lambda self, x: self.after(x + x), after=conv),
    "multiply": function(lambda self, x: self.after(x * x), after=conv),
    "subtract": function(lambda self, x: self.after(torch.relu(x - self.conv(x) - x)), conv=conv, after=conv),
    "concatenate": function(lambda self, x: self.after(torch.cat([x, x], 1)), after=lambda: conv(2 * WIDTH)),
    "negative_part": function(
        lambda self, x: (lambda y: self.after(torch.relu(torch.cat([y, -y], 1))))(self.conv(x)),
        conv=conv, after=lambda: conv(2 * WIDTH),
    ),
    "stack": function(lambda self, x: self.after(torch.stack([x, x], 2).flatten(1, 2)), after=lambda: conv(2 * WIDTH)),
    "dense": Dense,
    "product": function(lambda self, x: self.after(tokens(x).mT @ tokens(x) / 64), after=linear()),
}  # fmt: skip


def _overwrite_halves(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, :4].relu_()
    y[:, 4:] *= 0.5
    return self.after(y)  # type: ignore[no-any-return]


def _overwrite_what_a_view_shows(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    flat = y.flatten(1)
    y.relu_()
    return self.linear(flat)  # type: ignore[no-any-return]


OVERWRITTEN: dict[str, Pattern] = {
    "flatten": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True)
    ),
    "view": function(
        lambda self, x: self.linear(F.hardswish(self.conv(x).view(x.shape[0], -1), inplace=True)),
        conv=conv, linear=linear(64 * WIDTH),
    ),
    "reshape": function(
        lambda self, x: self.after(self.conv(x).reshape(-1, 8, 64).add_(1.0)), conv=conv, after=linear(64)
    ),
    "halves": function(_overwrite_halves, conv=conv, after=conv),
    "seen_through_a_view": function(_overwrite_what_a_view_shows, conv=conv, linear=linear(64 * WIDTH)),
}  # fmt: skip

PARAMETERS: dict[str, Pattern] = {
    f"{name}_{'x'.join(map(str, shape)) or 'scalar'}": function(
        lambda self, x, operation=operation: self.after(torch.relu(operation(self.conv(x), self.own))),
        conv=lambda: conv(bias=False), after=conv, own=learned(*shape),
    )
    for name, operation in (("add", torch.add), ("multiply", torch.mul))
    for shape in ((1, WIDTH, 1, 1), (), (1,), (8,), (1, WIDTH, 8, 8))
} | {
    "affine_of_maps": function(
        lambda self, x: self.after((F.max_pool2d(x, 2) - self.mean) / self.deviation),
        mean=lambda: torch.rand(1, WIDTH, 1, 1), deviation=lambda: torch.rand(1, WIDTH, 1, 1) + 0.5, after=conv,
    ),
    "layer_scale": function(
        lambda self, x: x + (self.linear(self.norm(x.permute(0, 2, 3, 1))) * self.scale).permute(0, 3, 1, 2),
        linear=linear(), norm=lambda: nn.LayerNorm(WIDTH), scale=learned(WIDTH),
    ),
}  # fmt: skip

PADDINGS: dict[str, Pattern] = {
    mode: lambda mode=mode: nn.Sequential(conv(kernel=(3, 5), padding=(1, 2), padding_mode=mode), nn.ReLU(), conv())  # type: ignore[misc]
    for mode in ("reflect", "replicate", "circular")
} | {
    type(pad).__name__: between(lambda pad=pad: pad)
    for pad in (
        nn.ZeroPad2d((1, 2, 0, 1)), nn.ConstantPad2d((1, 0, 1, 0), -1.5), nn.ReflectionPad2d((1, 2, 3, 0)),
        nn.ReplicationPad2d((1, 2, 3, 0)), nn.CircularPad2d((1, 2, 3, 0)),
    )
} | {
    "zeros_of_another_axis": function(lambda self, x: self.after(F.pad(x, (0, 0, 0, 0, 2, 2))), after=lambda: conv(12)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1), nn.ReLU(), conv()),
}  # fmt: skip


def _attention(self: Any, x: Tensor) -> Tensor:
    q, k, v = self.qkv(tokens(x)).chunk(3, -1)
    return (q @ k.transpose(1, 2) / 3 + self.mask).softmax(-1) @ v  # type: ignore[no-any-return]


def _classified_token(self: Any, x: Tensor, token: Tensor) -> Tensor:
    joined = torch.cat([token, tokens(x)], 1) + self.places
    return torch.relu(self.linear(joined))[:, 0] + joined.mean(1)


def _causal() -> Tensor:
    return torch.ones(64, 64).triu(1).bool()


def _positions(x: Tensor) -> Tensor:
    """Where each pixel is, as waves along the rows, for as many images as there are."""
    rows = x.new_ones(1, 1, 1, 1).expand(len(x), WIDTH, *x.shape[2:]).cumsum(2)
    return (rows * torch.arange(WIDTH, device=x.device).view(1, -1, 1, 1)).sin()


def _in_windows(*qkv_NWTHD: Tensor) -> Tensor:
    """Attention within windows, which have a dimension of their own."""
    attended_NHWTD = F.scaled_dot_product_attention(*(each.permute(0, 3, 1, 2, 4) for each in qkv_NWTHD))
    return attended_NHWTD.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)


_TOKEN: Any = {"token": learned(1, 1, WIDTH), "places": learned(1, 65, WIDTH), "linear": linear()}

TOKENS: dict[str, Pattern] = {
    "squeeze": function(lambda self, x: F.relu(self.linear(F.adaptive_avg_pool2d(x, 1).squeeze())), linear=linear()),
    "unsqueeze": function(
        lambda self, x: self.after(F.relu(self.linear(x.mean((2, 3)))).unsqueeze(-1).unsqueeze(-1)),
        linear=linear(), after=conv,
    ),
    "flatten_some": function(
        lambda self, x: F.relu(self.linear(self.conv(x).flatten(2))), conv=conv, linear=linear(64)
    ),
    "class_token": function(lambda self, x: _classified_token(self, x, self.token.expand(len(x), -1, -1)), **_TOKEN),
    "repeated": function(lambda self, x: _classified_token(self, x, self.token.repeat(x.shape[0], 1, 1)), **_TOKEN),
    "infinite_mask": function(_attention, qkv=linear(8, 24), mask=lambda: torch.full((64, 64), -math.inf).triu(1)),
    "boolean_mask": function(
        lambda self, x: F.scaled_dot_product_attention(*self.qkv(tokens(x)).chunk(3, -1), attn_mask=self.mask),
        qkv=linear(8, 24), mask=lambda: ~_causal(),
    ),
    "attention_in_windows": function(
        lambda self, x: _in_windows(*self.qkv(tokens(x)).unflatten(1, (4, 16)).unflatten(3, (3, 2, 4)).unbind(3)),
        qkv=linear(8, 24),
    ),
    "attention": function(
        lambda self, x: self.attention(*[tokens(x)] * 3, attn_mask=self.mask, need_weights=False)[0],
        attention=lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True), mask=_causal,
    ),
    "positions": function(
        lambda self, x: tokens(F.relu(self.conv(x)) + self.embedding(_positions(x))), conv=conv, embedding=conv
    ),
    "encoder": function(
        lambda self, x: self.layer(tokens(x)), layer=lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    ),
}  # fmt: skip


class Standardized(nn.Conv2d):
    """Weights are standardized while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.weight.mean((1, 2, 3), keepdim=True), self.weight.var((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


COMPUTED_WEIGHTS: dict[str, Pattern] = {
    "standardized": lambda: nn.Sequential(Standardized(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
    "weight_norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), nn.ReLU()),
    "old_weight_norm": lambda: nn.Sequential(nn.utils.weight_norm(conv()), nn.ReLU()),
    "spectral_norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(conv()), nn.ReLU()),
    "cosine": function(
        lambda self, x: F.linear(F.normalize(x.mean((2, 3)), dim=1), F.normalize(self.weight, dim=1)),
        weight=learned(8, 8),
    ),
    "tied": function(
        lambda self, x: F.linear(F.relu(F.linear(x.mean((2, 3)), self.weight)), self.weight.t()), weight=learned(16, 8)
    ),
    "sum": function(
        lambda self, x: F.conv2d(x, self.a + F.pad(self.b, (1, 1, 1, 1))), a=learned(8, 8, 3, 3), b=learned(8, 8, 1, 1)
    ),
}  # fmt: skip

FAMILIES: dict[str, dict[str, Pattern]] = {
    "poolings": POOLINGS,
    "clamps": CLAMPS,
    "read twice": READ_TWICE,
    "overwritten": OVERWRITTEN,
    "parameters": PARAMETERS,
    "paddings": PADDINGS,
    "tokens": TOKENS,
    "computed weights": COMPUTED_WEIGHTS,
}
