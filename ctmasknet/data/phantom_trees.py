"""Branching vessels and airways of a synthetic patient, and their cuts at a height.

Legend: n segments, each a straight tube from ``start`` to ``end`` (n, 3) mm with ``radius`` (n,)
    mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ctmasknet.data.phantom_anatomy import Anatomy

Array = np.ndarray

#: Fractional bits of the coordinates given to OpenCV's drawing.
_SHIFT = 4
#: Canvas pixels a picture pixel, along each side.
_SUPERSAMPLE = 3
#: Segments a branch from one fork to its end.
_PARTS = 3


@dataclass(frozen=True)
class Tubes:
    """Tubes of one kind; see the module's legend."""

    start: Array
    end: Array
    radius: Array

    @classmethod
    def join(cls, parts: list[Tubes]) -> Tubes:
        return cls(
            *(np.concatenate([getattr(p, n) for p in parts]) for n in ("start", "end", "radius"))
        )

    def wider_than(self, radius_mm: float) -> Tubes:
        keep = self.radius > radius_mm
        return Tubes(self.start[keep], self.end[keep], self.radius[keep])

    def widened(self, scale: float, by_mm: float) -> Tubes:
        return Tubes(self.start, self.end, self.radius * scale + by_mm)


def grow_tree(
    root: Array, targets: Array, rng: np.random.Generator, leaf_mm: float, power: float
) -> Tubes:
    """Connect every target to the tree near it, root first; radii follow the number of leaves
    behind a tube.

    Args:
        root: (3,) mm.
        targets: (k, 3) mm, ends of the branches.
        leaf_mm: radius of an end branch; a tube with m leaves behind it has ``leaf_mm * m **
            power``.
    """
    targets = targets[np.argsort(np.linalg.norm(targets - root, axis=1))].astype(np.float32)
    count = len(targets)
    nodes = np.empty((_PARTS * count + 1, 3), np.float32)
    way = np.zeros(len(nodes), np.float32)
    parent = np.zeros(len(nodes), int)
    nodes[0], used = root, 1
    bends = rng.normal(0, 0.10, (count, _PARTS, 1, 3)).astype(np.float32)
    bends[:, -1] = 0
    steps = (np.arange(1, _PARTS + 1, dtype=np.float32) / _PARTS)[None, :, None]
    first = 0
    while first < count:
        # A shell of targets at a time: few near the root, where each shapes what follows.
        batch = targets[first : first + max(1, min(first // 4, 24))]
        known = nodes[:used]
        square = (known * known).sum(1) + (batch * batch).sum(1)[:, None] - 2 * (batch @ known.T)
        distance = np.sqrt(np.maximum(square, 0))
        # Preferring short ways to the root makes branches run outwards instead of wandering.
        near = np.argmin(distance + 0.35 * way[:used], axis=1)
        length = distance[np.arange(len(batch)), near]
        base = nodes[near][:, None]
        points = base + (batch[:, None] - base) * steps
        points += bends[first : first + len(batch), :, 0] * length[:, None, None]
        new = np.arange(used, used + _PARTS * len(batch)).reshape(len(batch), _PARTS)
        nodes[new] = points
        way[new] = way[near][:, None] + length[:, None] * steps[..., 0]
        parent[new[:, 0]], parent[new[:, 1:]] = near, new[:, :-1]
        used, first = used + new.size, first + len(batch)
    leaves = [0] * used
    for end in range(_PARTS, used, _PARTS):
        leaves[end] = 1
    above = parent.tolist()
    for i in range(used - 1, 0, -1):
        leaves[above[i]] += leaves[i]
    radius = leaf_mm * np.array(leaves[1:], np.float32) ** power
    return Tubes(nodes[parent[1:]], nodes[1:].copy(), radius)


def sample_lung_points(
    anatomy: Anatomy, rng: np.random.Generator, count: int, margin_mm: float
) -> Array:
    """Random points (m, 3) mm, m <= count, of both lungs, ``margin_mm`` below their surface."""
    half = [anatomy.half_width_mm, anatomy.half_depth_mm]
    low, high = [-half[0], -half[1], 0.0], [half[0], half[1], anatomy.height_mm * 0.98]
    points = rng.uniform(low, high, (4 * count, 3)).astype(np.float32)
    inside = anatomy.shapes(*points.T).lung > margin_mm
    return points[inside][:count]


def vessels(anatomy: Anatomy, rng: np.random.Generator) -> Tubes:
    """Arteries and veins of both lungs."""
    points = sample_lung_points(anatomy, rng, 1300, 3.0)
    h = anatomy.height_mm
    trees = []
    for sign in (-1, 1):
        side = points[np.sign(points[:, 0]) == sign]
        third = len(side) // 3
        roots = (np.array([sign * 34, 4, 0.52 * h]), np.array([sign * 30, 12, 0.43 * h]))
        for root, targets, leaf in zip(
            roots, (side[third:], side[:third]), (0.62, 0.62), strict=True
        ):
            trees.append(grow_tree(root.astype(np.float32), targets, rng, leaf, 0.36))
    return Tubes.join(trees)


def airways(anatomy: Anatomy, rng: np.random.Generator) -> Tubes:
    """Trachea, main bronchi and the bronchial tree; radii are those of the lumen."""
    h = anatomy.height_mm
    carina = np.array([-2.0, 4.0, 0.60 * h], np.float32)
    top = np.array([0.0, -4.0, 1.1 * h], np.float32)
    trees = [Tubes(top[None], carina[None], np.array([rng.uniform(7.5, 9.5)], np.float32))]
    points = sample_lung_points(anatomy, rng, 170, 9.0)
    for sign in (-1, 1):
        hilum = np.array([sign * 36, 6, 0.51 * h], np.float32)
        main = np.array([rng.uniform(5.2, 6.6)], np.float32)
        trees.append(Tubes(carina[None], hilum[None], main))
        side = points[np.sign(points[:, 0]) == sign]
        tree = grow_tree(hilum, side, rng, 0.75, 0.38)
        trees.append(Tubes(tree.start, tree.end, np.minimum(tree.radius, 4.2)))
    return Tubes.join(trees)


def draw_tubes(
    tubes: Tubes, z: float, slab_mm: float, to_px: Array, side_px: int, pitch_mm: float
) -> Array:
    """Share of each pixel (0..1) covered by the tubes within ``slab_mm`` around height z.

    Args:
        to_px: (2, 3) affine map from (x, y, 1) mm to picture columns and rows.

    Returns:
        (side_px, side_px) float32.
    """
    canvas = np.zeros((side_px * _SUPERSAMPLE,) * 2, np.uint8)
    low, high = z - slab_mm / 2, z + slab_mm / 2
    z0, z1 = tubes.start[:, 2], tubes.end[:, 2]
    hit = (np.maximum(z0, z1) >= low) & (np.minimum(z0, z1) <= high)
    start, end, radius = tubes.start[hit], tubes.end[hit], tubes.radius[hit]
    if not len(radius):
        return np.zeros((side_px, side_px), np.float32)
    rise = end[:, 2] - start[:, 2]
    rise = np.where(np.abs(rise) < 1e-3, 1e-3, rise)
    cuts = np.sort(np.stack([(low - start[:, 2]) / rise, (high - start[:, 2]) / rise]), axis=0)
    cuts = np.clip(cuts, 0, 1)
    ends = start[None] + cuts[..., None] * (end - start)[None]
    pixels = ends[..., :2] @ to_px[:, :2].T + to_px[:, 2]
    fixed = np.round(((pixels + 0.5) * _SUPERSAMPLE - 0.5) * (1 << _SHIFT)).astype(int)
    width = 2 * radius * _SUPERSAMPLE / pitch_mm
    # Tubes thinner than a canvas pixel or than the slab fill it only in part.
    share = np.minimum(width, 1) * np.clip(2.6 * radius / slab_mm, 0.3, 1)
    order = np.argsort(share, kind="stable")
    thickness = np.maximum(np.round(width), 1).astype(int).tolist()
    levels = np.round(share * 255).astype(int).tolist()
    first, second = fixed[0].tolist(), fixed[1].tolist()
    for i in order.tolist():
        cv2.line(canvas, first[i], second[i], levels[i], thickness[i], cv2.LINE_8, _SHIFT)
    area = cv2.resize(canvas, (side_px, side_px), interpolation=cv2.INTER_AREA)
    return area.astype(np.float32) * np.float32(1 / 255)
