"""Boxes as distributions over the shifts of their four edges (Peng et al. 2025, "D-FINE", section 4.1).

An edge is not predicted as a number but as a distribution over `BINS` + 1 shifts, fine around zero and coarse far from
it: layers refine the distribution, and how wide it is says how sure they are.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 32
# Shifts are counted in quarters of the reference box's side; the last regular bin shifts by half a side.
_SCALE = 4.0
_REACH = 0.5


def bin_shifts(*, like: Tensor) -> Float[Tensor, " bins"]:
    """The shift of every bin, in quarters of a side (D-FINE, eq. 4): 0 in the middle, a whole side at the ends."""
    reach, half = _REACH * _SCALE, BINS // 2
    step = (reach + 1) ** (2 / (BINS - 2))
    growing = step ** torch.arange(1, half, dtype=torch.float64) - 1
    end = torch.tensor([2 * reach], dtype=torch.float64)
    shifts = torch.cat([-end, -growing.flip(0), torch.zeros(1, dtype=torch.float64), growing, end])
    return shifts.to(like.device, like.dtype)


def boxes_from_edges(
    edge_logits: Float[Tensor, "*shape 4 bins"], reference_cxcywh: Float[Tensor, "*shape 4"]
) -> Float[Tensor, "*shape 4"]:
    """The boxes (cxcywh) whose left, top, right and bottom edges are the reference's, shifted by the mean shift.

    An edge stops just short of the reference's centre, so that no box is turned inside out.
    """
    shares = edge_logits.softmax(dim=-1)
    shifts = (shares * bin_shifts(like=shares)).sum(dim=-1)  # not a matrix product, which autocast would round
    center, size = reference_cxcywh.split(2, dim=-1)
    from_center = (0.5 * _SCALE + shifts).clamp(min=1e-3) * torch.cat([size, size], dim=-1) / _SCALE
    before, after = from_center.split(2, dim=-1)
    return torch.cat([center + 0.5 * (after - before), before + after], dim=-1)


def edge_targets(
    boxes_cxcywh: Float[Tensor, "boxes 4"], reference_cxcywh: Float[Tensor, "boxes 4"]
) -> tuple[Int[Tensor, "boxes 4"], Float[Tensor, "boxes 4"]]:
    """Between which bins each edge of a box lies, seen from its reference.

    Returns:
        The bin below, 0 to BINS - 1, and the share (0 to 1) of the bin above it.
    """
    center, size = reference_cxcywh.split(2, dim=-1)
    truth_center, truth_size = boxes_cxcywh.split(2, dim=-1)
    unit = size.clamp(min=1e-6) / _SCALE
    before = (center - truth_center + 0.5 * truth_size) / unit - 0.5 * _SCALE
    after = (truth_center + 0.5 * truth_size - center) / unit - 0.5 * _SCALE
    shifts = bin_shifts(like=boxes_cxcywh)
    wanted = torch.cat([before, after], dim=-1).clamp(shifts[0], shifts[-1])
    below = (torch.searchsorted(shifts, wanted.contiguous(), right=True) - 1).clamp(0, BINS - 1)
    share = (wanted - shifts[below]) / (shifts[below + 1] - shifts[below])
    return below, share
