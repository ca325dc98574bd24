"""How the gradients at one layer call become its block of R, all cotangents at once or one after the other."""

from dataclasses import replace

from torch import Tensor

from tngd.curvature.factor import Outer, Positions, Rows

KEPT = 2**22  # numbers in the gradients of one layer call; beyond, each cotangent's are multiplied into rows at once


class Writer:
    """Collects the block of one layer call, one cotangent after the other.

    Inputs (b, groups, m, positions). A kind Rows writes the rows out: together at the end, which is faster, or where
    the gradients of all cotangents would be large, one cotangent at a time.
    """

    def __init__(self, inputs: Tensor, channels: int, q: int, places: tuple[int | None, int | None], kind: type):
        b, groups, m, positions = inputs.shape
        self.inputs, self.kind, (self.weight, self.bias) = inputs, kind, places
        self.at_once = kind is Rows and b * q * channels * positions > KEPT
        self.columns = channels * m if self.weight is not None else 0
        width = channels if kind is Outer else channels * positions
        if self.at_once:
            width = self.columns + (channels if self.bias is not None else 0)
        self.shape = (groups, channels // groups, positions)
        self.size = b, q, width
        self.kept = inputs.new_empty(0)

    def add(self, c: int, gradient: Tensor) -> None:
        """Take the gradients (b, groups, n, positions) of cotangent number c."""
        if not len(self.kept):
            self.kept = self.inputs.new_empty(self.size)
        if not self.at_once:
            self.kept[:, c] = gradient.reshape(len(gradient), -1)
            return
        if self.columns:
            self.kept[:, c, : self.columns] = (gradient @ self.inputs.mT).view(len(gradient), -1)
        if self.bias is not None:
            self.kept[:, c, self.columns :] = gradient.sum(-1).view(len(gradient), -1)

    def take(self, gradients: Tensor) -> None:
        """Take the gradients (b, q, channels * positions) of all cotangents at once, not to be used by others."""
        self.kept = gradients

    def block(self) -> Outer | Positions | Rows:
        """The block, once all cotangents are in. It has inputs of its own: the caller may reuse the batch's memory."""
        b, q, _ = self.kept.shape
        if self.kind is Outer:
            return Outer(self.inputs[:, 0, :, 0].clone(), self.kept, self.weight, self.bias)
        if not self.at_once:
            block = Positions(self.inputs, self.kept.view(b, q, *self.shape), self.weight, self.bias)
            return block.rows() if self.kind is Rows else replace(block, inputs=self.inputs.clone())
        places = [(self.weight, self.columns)] if self.weight is not None else []
        places += [(self.bias, self.shape[0] * self.shape[1])] if self.bias is not None else []
        return Rows(self.kept.view(b * q, -1), tuple(places))
