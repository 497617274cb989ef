"""What ranks send each other in a step of ZeRO, by formula, and a model of what that costs on many devices.

Formulas: ZeRO (arXiv 1910.02054, sections 7.1 and 7.2): with P parameters a rank sends 2P values a step at stages 0 to
2 (gradients reduced and scattered, weights or their sums gathered) and 3P at stage 3 (weights gathered in forward and
in backward, gradients reduced and scattered), each times (n - 1) / n in a ring of n ranks.
"""

from __future__ import annotations

from dataclasses import dataclass


def values_in_collectives(stage: int, parameters: int) -> int:
    """Values that go through a rank's collectives in an optimizer step without accumulation: 2P, or 3P at stage 3."""
    return (3 if stage == 3 else 2) * parameters


def ring_share(ranks: int) -> float:
    """What a rank of a ring really sends of what is gathered or scattered: (n - 1) / n."""
    return (ranks - 1) / ranks


@dataclass(frozen=True)
class Links:
    """Bytes a second in one direction: of a device to its neighbours in the node, of a node to the others."""

    device: float
    node: float
    devices_a_node: int = 8


def communication_s(volume: float, devices: int, links: Links) -> float:
    """Seconds that collectives of `volume` bytes (of gathering or scattering) take alone on `devices` devices.

    In rings that go through every node once, as many as a node has devices: a device sends (n - 1) / n of the volume to
    its neighbours inside of the node, and as much crosses the border of a node, over all its devices together.
    """
    share = ring_share(devices)
    inside = share * volume / links.device if links.devices_a_node > 1 else 0.0
    across = share * volume / links.node if devices > links.devices_a_node else 0.0
    return max(inside, across)  # one after the other would be slower; rings do both at once


def step_s(compute_s: float, communication: float, overlap: float) -> float:
    """Seconds of a step whose collectives are hidden behind the backward to the share `overlap` as long as it lasts.

    The backward is two thirds of the compute.
    """
    hidden = min(overlap * communication, compute_s * 2 / 3)
    return compute_s + communication - hidden
