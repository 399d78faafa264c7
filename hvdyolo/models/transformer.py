"""Attention over all cells of a feature map, as published: layers have no norms."""

from torch import Tensor, nn

from hvdyolo.models.blocks import C3

_HEADS = 4


class TransformerLayer(nn.Module):
    """Multi-head attention and two linear maps in a row, each added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.ma = nn.MultiheadAttention(channels, heads)
        self.fc1 = nn.Linear(channels, channels, bias=False)
        self.fc2 = nn.Linear(channels, channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(H·W, B, C) → the same."""
        attended, _ = self.ma(self.q(tokens), self.k(tokens), self.v(tokens), need_weights=False)
        x = attended + tokens
        return self.fc2(self.fc1(x)) + x  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """``layers`` transformer layers over the cells of a feature map."""

    def __init__(self, channels: int, heads: int, layers: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        self.tr = nn.Sequential(*(TransformerLayer(channels, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).permute(2, 0, 1)  # (H·W, B, C)
        tokens = self.tr(tokens + self.linear(tokens))
        y: Tensor = tokens.permute(1, 2, 0).reshape(batch, channels, height, width)
        return y


class C3TR(C3):
    """C3 whose long branch is a transformer block of ``repeats`` layers."""

    def __init__(self, inputs: int, outputs: int, repeats: int = 1, shortcut: bool = True) -> None:
        super().__init__(inputs, outputs, 0)
        self.m = TransformerBlock(self.hidden, _HEADS, repeats)  # type: ignore[assignment]
