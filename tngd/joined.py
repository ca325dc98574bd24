"""The curvature of joined batches of one model: one factor with the rows of all.

Blocks of the same parameters are put one below the other in the form they have. Where batches called the layers
differently, so that the blocks are of other parameters, all are written out, parameter by parameter, and rows of a
batch that did not use a parameter are zero there.
"""

import torch

from tngd.curvature.factor import Factor, Rows, apart


def join_factors(factors: list[Factor], scales: list[float]) -> Factor:
    """One factor with the rows of all, each scaled: the curvature of joined batches of the same model."""
    if len(factors) == 1 and scales == [1.0]:
        return factors[0]
    if len({tuple(block.offsets for block in factor.blocks) for factor in factors}) > 1:
        factors = _alike(factors)
    blocks = []
    for parts in zip(*(factor.blocks for factor in factors), strict=True):
        if len({(type(part), part.inputs.shape[2:]) if not isinstance(part, Rows) else Rows for part in parts}) > 1:
            parts = [part.rows() for part in parts]
        if isinstance(parts[0], Rows):
            matrix = torch.cat([scale * part.matrix for part, scale in zip(parts, scales, strict=True)])
            blocks.append(Rows(matrix, parts[0].places))
        else:
            outputs = torch.cat([scale * part.outputs for part, scale in zip(parts, scales, strict=True)])
            inputs = torch.cat([part.inputs for part in parts])
            blocks.append(type(parts[0])(inputs, outputs, parts[0].weight, parts[0].bias))
    return Factor(tuple(blocks), sum(factor.rank for factor in factors), factors[0].size)


def _alike(factors: list[Factor]) -> list[Factor]:
    """The same curvatures in blocks of the same places: where these differ, one of rows for every parameter."""
    written = [[part for block in factor.blocks for part in apart(block.rows())] for factor in factors]
    places = sorted({part.places for parts in written for part in parts})
    alike = []
    for factor, parts in zip(factors, written, strict=True):
        blocks = []
        for place in places:
            found = [part.matrix for part in parts if part.places == place]
            zero = factor.values.new_zeros(factor.rank, place[0][1])
            blocks.append(Rows(sum(found) if found else zero, place))
        alike.append(Factor(tuple(blocks), factor.rank, factor.size))
    return alike
