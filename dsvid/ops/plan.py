"""Which tokens the encoder sees and which the decoder predicts: plans from seeds, or from given masks.

Mask convention everywhere: bool [B, N], True = masked (hidden from the encoder) or dropped (from the decoder).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dsvid.ops.library  # noqa: F401  registers torch.ops.dsvid.*
from dsvid.errors import OpError
from dsvid.ops import reference
from dsvid.ops.checks import check_cell, check_seeds
from dsvid.tokens import TubeletGrid


@dataclass(frozen=True)
class TokenPlan:
    """Index lists of a batch; `max_targets` (L) is static, so that shapes do not depend on the masks.

    visible int32 [B, V] ascending; decoded int32 [B, D]: first the loss tokens (masked and kept) ascending, then the
    kept visible ones ascending; n_targets int32 [B]: loss tokens of each clip, at most L; exact: every clip has L.
    """

    visible: Tensor
    decoded: Tensor
    n_targets: Tensor
    max_targets: int
    exact: bool = True

    @property
    def targets(self) -> Tensor:
        """int32 [B, L]: the tokens to predict; where not `exact`, the tail of a row has weight 0."""
        return self.decoded[:, : self.max_targets]

    @property
    def target_weight(self) -> Tensor | None:
        """float32 [B, L]: 1 for a loss token, 0 for filling; None where every clip has L loss tokens."""
        if self.exact:
            return None
        place = torch.arange(self.max_targets, device=self.n_targets.device)
        return (place[None, :] < self.n_targets[:, None]).float()


def plan_tokens(seeds: Tensor, grid: TubeletGrid, masked_sites: int, cell_drop: int = 0) -> TokenPlan:
    """Draw tube masks (and running cells, where cell_drop > 0) from int64 seeds [B] and list their tokens.

    Raises OpError for seeds of another type, masked_sites outside 1..h*w-1, cell_drop outside 0..3, or an odd grid
    with cell_drop > 0.
    """
    visible, decoded, n_targets = torch.ops.dsvid.plan_tokens(seeds, grid.t, grid.h, grid.w, masked_sites, cell_drop)
    rounds, rest = divmod(grid.t, 4)
    kept_slots = grid.t if cell_drop == 0 else rounds * (4 - cell_drop) + min(rest, 4 - cell_drop)
    max_targets = min(masked_sites * kept_slots, int(decoded.shape[1]))
    return TokenPlan(visible, decoded, n_targets, max_targets, exact=cell_drop == 0 or rest == 0)


def plan_from_masks(mask: Tensor, decode_mask: Tensor | None) -> TokenPlan:
    """List the tokens of given masks, bool [B, N]; without a decode mask, the decoder predicts every masked token.

    Raises OpError where clips differ in their number of visible or of kept tokens.
    """
    for name, given in (("mask", mask), ("decode_mask", decode_mask)):
        if given is not None and (given.dtype != torch.bool or given.shape != mask.shape or given.dim() != 2):
            raise OpError(
                f"plan_from_masks: {name} has the wrong type or shape",
                found=f"{given.dtype} {list(given.shape)}",
                expected=f"torch.bool {list(mask.shape) if mask.dim() == 2 else '[B, N]'}, True = masked or dropped",
            )
    kept = mask if decode_mask is None else ~decode_mask
    n_visible = _equal_count(~mask, "visible")
    n_decoded = _equal_count(kept, "kept")
    visible, decoded, n_targets = reference.order_tokens(mask, kept, n_visible, n_decoded)
    most, least = int(n_targets.max()), int(n_targets.min())
    return TokenPlan(visible, decoded, n_targets, most, exact=most == least)


def _equal_count(flags: Tensor, what: str) -> int:
    counts = flags.sum(dim=1).tolist()
    if not counts or min(counts) != max(counts):
        raise OpError(
            f"plan_from_masks: clips of one batch differ in their number of {what} tokens",
            found=counts,
            expected="the same number in every clip",
        )
    return int(counts[0])


def tube_mask(seeds: Tensor, grid: TubeletGrid, masked_sites: int) -> Tensor:
    """bool [B, N], True = masked: the tube masks that `plan_tokens` draws from the same seeds."""
    check_seeds(seeds, grid.h, grid.w, masked_sites)
    return reference.masked_sites_of(seeds, grid.sites, masked_sites).repeat(1, grid.t)


def running_cell_mask(seeds: Tensor, grid: TubeletGrid, cell_drop: int) -> Tensor:
    """bool [B, N], True = dropped from the decoder: the running cells that `plan_tokens` draws from the same seeds."""
    check_seeds(seeds, grid.h, grid.w, 1)
    check_cell(grid.h, grid.w, cell_drop)
    return reference.running_cell_mask(seeds, grid.t, grid.h, grid.w, cell_drop)


def running_cell_maps(grid: TubeletGrid, cell_drop: int) -> Tensor:
    """bool [4, N], True = dropped: the running cell for each of its four start positions."""
    check_cell(grid.h, grid.w, cell_drop)
    return reference.running_cell_maps(grid.t, grid.h, grid.w, cell_drop)
