"""Small models of many kinds, for tests that hold for any model. Each has a few thousand parameters at most."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.cases import normal


def image(channels: int = 3, size: int = 8) -> Tensor:
    return normal(2, channels, size, size, seed=1, dtype=torch.float32)


def tokens(length: int = 5, width: int = 8) -> Tensor:
    return normal(2, length, width, seed=2, dtype=torch.float32)


def words(length: int = 6) -> Tensor:
    return torch.arange(2 * length).reshape(2, length) % 10


class Vgg(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(24, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 5),
        )  # fmt: skip


class PostActivation(nn.Module):
    """The block of the first residual nets: one ReLU module for all places, the last one behind the sum."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or channels != out_channels:
            conv = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(PostActivation(4, 4), PostActivation(4, 4))
        self.layer2 = nn.Sequential(PostActivation(4, 6, stride=2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.pool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


class PreActivation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(out)))


class PreActivationNet(nn.Sequential):
    def __init__(self) -> None:
        head = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), PreActivation(4), PreActivation(4), head)


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), DenseLayer(4, 3), DenseLayer(7, 3),
            nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 5, 1), nn.AvgPool2d(2),
        )  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * F.hardsigmoid(gate)


class MobileBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, 8, 1), nn.Hardswish(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish(), SqueezeExcite(8),
            nn.Conv2d(8, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.merge = nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.leaky_relu(self.down1(x), 0.1)
        deep = F.leaky_relu(self.down2(F.max_pool2d(skip, 2)), 0.1)
        x = F.leaky_relu(self.merge(torch.cat((self.up(deep), skip), dim=1)), 0.1)
        return F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear", align_corners=False)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
        self.branch2 = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 3, padding=1), nn.ReLU())
        self.branch3 = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.branch1(x), self.branch2(x), self.branch3(x)], 1)).mean((2, 3))


def mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(8), mlp(5, 4)
        self.norm2, self.channels = nn.LayerNorm(8), mlp(8, 16)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class VisionTransformer(nn.Module):
    """One block with nn.MultiheadAttention, a class token and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.cls_token = nn.Parameter(torch.full((1, 1, 8), 0.5))
        self.positions = nn.Parameter(normal(1, 5, 8, seed=3, dtype=torch.float32))
        self.norm1, self.norm2, self.norm = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = mlp(8, 16)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


class FusedAttention(nn.Module):
    """One block with one matrix for queries, keys and values, and the functional attention."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = mlp(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        out = F.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(out.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class SharedCell(nn.Module):
    """A recurrent net that is written out: one cell, used at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.cell, self.head = nn.Linear(8, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(self.read(x[:, 0]))
        for step in range(1, 3):
            state = torch.tanh(self.read(x[:, step]) + self.cell(state))
        return self.head(state)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embedding(ids))
        return self.head(torch.cat([hidden[0], hidden[1]], 1))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 16), nn.Sigmoid())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code = self.encoder(x)
        return {"code": code, "picture": self.decoder(code)}


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 6), nn.PReLU(), nn.Linear(6, 4))
        self.head = nn.Linear(4, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.trunk(left) - self.trunk(right)).abs())


class Functional(nn.Module):
    """The same few activations in every spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(7))
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers[0](x))
        x = torch.relu(self.layers[1](x))
        x = self.layers[2](x).relu()
        x = self.layers[3](x)
        x.relu_()
        x = self.layers[4](x)
        x = x * torch.sigmoid(x)
        x = self.layers[5](x)
        x = torch.where(x > 0, x, 0.1 * x) * self.gain
        return self.layers[6](x)


class ControlFlow(nn.Module):
    """Which branch is taken depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.positive, self.negative = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.positive(x) if x.sum() > -100.0 else self.negative(x)


class WeightNormed(nn.Sequential):
    def __init__(self) -> None:
        conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        linear = parametrizations.weight_norm(nn.Linear(4, 5))
        super().__init__(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


class StandardizedConv(nn.Conv2d):
    def __init__(self, channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(channels, out_channels, kernel_size)
        self.gain = nn.Parameter(torch.ones(out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        var = self.weight.var((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(var * self.weight[0].numel() + 1e-4) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class NormalizerFree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = StandardizedConv(3, 4, 3), StandardizedConv(4, 4, 1)
        self.skip_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.conv(F.gelu(x) * 1.7)
        return x + 0.2 * out * self.skip_gain


class LayerScale(nn.Module):
    """A branch with a learned factor for each channel, one with a single factor, and a drop of whole examples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.gamma = nn.Parameter(torch.full((4, 1, 1), 1e-4))
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.conv1(F.silu(x))
        branch = self.alpha * self.conv2(F.silu(x))
        if self.training:
            keep = branch.new_empty(len(x), 1, 1, 1).bernoulli_(0.8)
            branch = branch * keep.div_(0.8)
        return x + branch


class Text(nn.Module):
    """A bag of words with learned positions, whose head is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(10, 8), nn.Embedding(6, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.positions(places)
        return self.head(torch.tanh(self.hidden(x.mean(1))))


@dataclass(frozen=True)
class Architecture:
    """A model to build, and what it is called with: a tensor, positional or keyword arguments."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]

    def __repr__(self) -> str:
        return self.name


ARCHITECTURES = [
    Architecture("vgg", Vgg, image),
    Architecture("resnet", ResNet, image),
    Architecture("pre-activation", PreActivationNet, image),
    Architecture("densenet", DenseNet, image),
    Architecture("mobilenet", lambda: MobileBlock(3), image),
    Architecture("unet", UNet, image),
    Architecture("inception", Inception, image),
    Architecture("mixer", Mixer, tokens),
    Architecture("vit", VisionTransformer, image),
    Architecture("fused attention", FusedAttention, tokens),
    Architecture("shared cell", SharedCell, tokens),
    Architecture("lstm", Lstm, words),
    Architecture("autoencoder", Autoencoder, lambda: normal(2, 16, dtype=torch.float32)),
    Architecture("siamese", Siamese, lambda: {"left": tokens()[:, 0], "right": tokens()[:, 1]}),
    Architecture("functional", Functional, lambda: tokens()[:, 0]),
    Architecture("control flow", ControlFlow, lambda: tokens()[:, 0]),
    Architecture("weight norm", WeightNormed, image),
    Architecture("normalizer-free", NormalizerFree, image),
    Architecture("layer scale", LayerScale, lambda: image(4)),
    Architecture("text", Text, words),
]

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}

over_architectures = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
