"""Chest anatomy of one synthetic patient as smooth implicit shapes.

Frame: millimetres, x to the image's right (the patient's left), y to the back (spine down), origin
in the middle of the chest; z runs from the lung base (0) up to the apex (``height_mm``). A shape
is a field that is positive inside and close to the distance from its edge in mm, so that edges can
be drawn with partial volume at any pixel pitch. Every function takes arrays of any one shape, or a
scalar z, so pictures and point clouds share one definition.

Vessels and airways are trees of straight tubes (:class:`Tubes`), cut at a height.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

Array = np.ndarray


def ellipse(x: Array, y: Array, cx, cy, rx, ry, angle: float = 0.0) -> Array:
    """Field of an ellipse (mm); ``angle`` in radians turns its first axis from x towards y."""
    u, v = x - cx, y - cy
    if angle:
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = c * u + s * v, c * v - s * u
    rx, ry = np.maximum(rx, np.float32(1e-2)), np.maximum(ry, np.float32(1e-2))
    # In place: this is where most of a slice's time goes.
    u /= rx
    v /= ry
    u *= u
    v *= v
    u += v
    np.sqrt(u, out=u)
    np.subtract(1, u, out=u)
    u *= np.minimum(rx, ry)
    return u


def smooth_union(a: Array, b: Array, blend_mm: float) -> Array:
    """Union of two fields with the crease rounded over ``blend_mm``."""
    crease = a - b
    np.abs(crease, out=crease)
    np.subtract(np.float32(blend_mm), crease, out=crease)
    np.maximum(crease, 0, out=crease)
    crease *= crease
    crease *= np.float32(0.25 / blend_mm)
    crease += np.maximum(a, b)
    return crease


def _cap(z, centre, radius):
    """Relative radius of an ellipsoid's cut at height z (0 beyond its poles)."""
    return np.sqrt(np.maximum(1 - ((z - centre) / radius) ** 2, 0))


@dataclass(frozen=True)
class Shapes:
    """Fields at given points, mm, positive inside; ``lung`` is both lungs together."""

    cavity: Array
    heart: Array
    liver: Array
    lung: Array


@dataclass(frozen=True)
class Anatomy:
    """Measures of one patient; lengths in mm, attenuation in HU."""

    half_width_mm: float
    half_depth_mm: float
    height_mm: float
    wall_side_mm: float
    wall_front_mm: float
    muscle_mm: float
    breast_mm: float
    heart_scale: float
    heart_angle: float
    mediastinum_mm: float
    dome_right: float
    dome_left: float
    aorta_mm: float
    rib_phase: float
    fissure_shift_mm: float
    lung_hu: float
    gravity_hu: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Anatomy:
        """Draw a patient: adults of either sex, thin to obese, breath held more or less deep."""
        size = rng.normal(1.0, 0.05)
        return cls(
            half_width_mm=float(np.clip(133 * size + rng.normal(0, 5), 112, 152)),
            half_depth_mm=float(np.clip(95 * size + rng.normal(0, 6), 78, 115)),
            height_mm=float(np.clip(225 * size + rng.normal(0, 12), 185, 270)),
            wall_side_mm=float(rng.uniform(22, 42)),
            wall_front_mm=float(rng.uniform(18, 34)),
            muscle_mm=float(rng.uniform(5, 12)),
            breast_mm=float(rng.uniform(22, 42)) if rng.random() < 0.4 else 0.0,
            heart_scale=float(rng.uniform(0.88, 1.14)),
            heart_angle=float(rng.uniform(0.35, 0.75)),
            mediastinum_mm=float(rng.uniform(22, 30)),
            dome_right=float(rng.uniform(0.13, 0.25)),
            dome_left=float(rng.uniform(0.08, 0.18)),
            aorta_mm=float(rng.uniform(10, 14)),
            rib_phase=float(rng.uniform(0, 2 * np.pi)),
            fissure_shift_mm=float(rng.normal(0, 8)),
            lung_hu=float(rng.normal(-855, 22)),
            gravity_hu=float(rng.uniform(10, 60)),
        )

    def cavity_axes(self, z) -> tuple:
        """Half width and half depth of the chest cavity at height z, mm."""
        up = np.maximum(z / self.height_mm - 0.3, 0) / 0.76
        width = np.sqrt(np.maximum(1 - up * up * up, 0.02))
        return self.half_width_mm * width, self.half_depth_mm * (0.35 + 0.65 * width)

    def shapes(self, x: Array, y: Array, z) -> Shapes:
        """Cavity, heart with great vessels, both domes below, and lungs at points (x, y, z)."""
        a, b = self.cavity_axes(z)
        t = z / self.height_mm
        # Wider at the back than at the front.
        u, v = (x / (a * (1 + 0.07 * (y / b)))) ** 2, (y / b) ** 2
        round_, square = np.sqrt(u + v), np.sqrt(np.sqrt(u * u + v * v))
        q = np.maximum(0.6 * round_ + 0.4 * square, 1e-3)
        cavity = (1 - q) * np.sqrt(x * x + y * y) / q

        s, depth = self.heart_scale, self.half_depth_mm
        beat = _cap(t, 0.24, 0.34)
        axes = (63 * s * beat, 47 * s * beat, self.heart_angle)
        heart = ellipse(x, y, 20 * s, -0.27 * depth, *axes)
        # Aortic root, pulmonary trunk and superior cava above the heart; the arch; the descending
        # aorta.
        trunk = np.clip((t - 0.30) / 0.12, 0, 1) * np.clip((0.80 - t) / 0.08, 0, 1)
        great = ellipse(x, y, -6.0, -0.24 * depth, 36 * trunk, 27 * trunk, angle=0.25)
        arch = _cap(t, 0.70, 0.05)
        arch = ellipse(x, y, 9.0, 0.02 * depth, 40 * arch, 15 * arch, angle=1.05)
        great = np.maximum(great, arch)
        below_arch = np.clip((0.73 - t) / 0.03, 0, 1) * self.aorta_mm
        aorta = ellipse(x, y, 25.0, 0.42 * depth, below_arch, below_arch)
        heart = smooth_union(smooth_union(heart, great, 10.0), aorta, 4.0)
        branch = 8.0 * np.clip((t - 0.72) / 0.05, 0, 1)
        for cx, cy in ((-20.0, -0.26), (-9.0, -0.10), (11.0, -0.08), (17.0, 0.10)):
            heart = np.maximum(heart, ellipse(x, y, cx, cy * depth, branch, branch))

        # The middle: a strip that thins to the front, hila at mid height, the spine with its soft
        # tissue at the back.
        hilum = _cap(t, 0.50, 0.13)
        strip = self.mediastinum_mm * (1 + 0.3 * np.clip((t - 0.6) / 0.2, 0, 1))
        middle = ellipse(x, y, 0.0, 0.06 * b, strip, 0.74 * b)
        middle = smooth_union(middle, ellipse(x, y, 2.0, -0.7 * b, 9.0, 0.5 * b), 7.0)
        middle = smooth_union(middle, ellipse(x, y, 0.0, 2.0, 47 * hilum, 17 * hilum), 8.0)
        middle = smooth_union(middle, ellipse(x, y, 0.0, 0.82 * b, 30.0, 0.40 * b), 6.0)

        right = _cap(t, self.dome_right - 0.30, 0.30)
        left = _cap(t, self.dome_left - 0.28, 0.28)
        width = self.half_width_mm
        liver = np.maximum(
            ellipse(x, y, -0.46 * width, -0.14 * depth, 0.56 * width * right, 0.84 * depth * right),
            ellipse(x, y, 0.48 * width, -0.10 * depth, 0.50 * width * left, 0.82 * depth * left),
        )
        solid = np.maximum(smooth_union(heart, middle, 5.0), liver)
        return Shapes(cavity, heart, liver, np.minimum(cavity, -solid))

    def body(self, x: Array, y: Array, z: float) -> Array:
        """Field of the skin outline at height z."""
        t = z / self.height_mm
        a = self.half_width_mm + self.wall_side_mm * (1 + 0.25 * max(t - 0.6, 0))
        b = self.half_depth_mm * 1.05 + self.wall_front_mm
        u, v = (x / a) ** 2, ((y - 9) / b) ** 2
        q = np.maximum(0.5 * np.sqrt(u + v) + 0.5 * np.sqrt(np.sqrt(u * u + v * v)), 1e-3)
        outline = (1 - q) * np.sqrt(x * x + (y - 9) ** 2) / q
        full = float(_cap(t, 0.32, 0.38))
        if self.breast_mm and full > 0.2:
            side = np.abs(x) - 0.52 * self.half_width_mm
            breast = ellipse(side, y, 0.0, -0.86 * b, 62 * full, 1.1 * self.breast_mm * full)
            outline = smooth_union(outline, breast, 14.0)
        return outline

    def oblique_fissure(self, x: Array, y: Array, z) -> Array:
        """Distance from the oblique fissure in y, mm: positive in the lower lobes, behind it."""
        level = (z / self.height_mm - 0.25) * 1.7 - 0.35
        # It runs forward towards the side and bends a little.
        wave = np.sin(np.float32(0.07) * x + np.float32(self.rib_phase))
        bend = 0.28 * (np.abs(x) - 70) + 3 * wave
        return y + bend - (level * self.half_depth_mm + self.fissure_shift_mm)

    def lobe(self, x: Array, y: Array, z) -> Array:
        """Lobe: 0 right upper, 1 right middle, 2 right lower, 3 left upper, 4 left lower."""
        lower = self.oblique_fissure(x, y, z) > 0
        middle = np.broadcast_to(np.asarray(z) < 0.5 * self.height_mm, np.shape(lower))
        right = np.where(lower, 2, np.where(middle, 1, 0))
        return np.where(x < 0, right, np.where(lower, 4, 3))

    def bones(self, x: Array, y: Array, z: float, cavity: Array, azimuth: Array) -> Array:
        """Field of ribs, sternum, spine and shoulder blades; ``azimuth`` is 0 at the front."""
        a, b = self.cavity_axes(z)
        # Ribs slope down to the front, so a slice cuts each at another azimuth: a wave that runs
        # with z.
        wave = np.cos(np.float32(11.0) * np.abs(azimuth) + np.float32(self.rib_phase + z * 0.26))
        bone = (1 - ((cavity + 7) / 4.2) ** 2 - ((1 - wave) / 0.9) ** 2) * 3
        bone = np.maximum(bone, ellipse(x, y, 0.0, -b - 8, 19.0, 5.5))
        spine = 0.64 * self.half_depth_mm
        process = 0.5 + 0.5 * np.cos(z * 0.25 + self.rib_phase)
        bone = np.maximum(bone, ellipse(x, y, 0.0, spine, 18.0, 14.5))
        bone = np.maximum(bone, 3.2 - np.abs(ellipse(x, y, 0.0, spine + 22, 11.5, 11.0)))
        bone = np.maximum(bone, ellipse(x, y, 0.0, spine + 42, 3.6, 14.0 * process + 3))
        if process > 0.3:
            wing = ellipse(np.abs(x), y, 24.0, spine + 24, 15.0 * process, 4.5, angle=0.5)
            bone = np.maximum(bone, wing)
        if z > 0.45 * self.height_mm:
            reach = min((z / self.height_mm - 0.45) / 0.2, 1.0)
            middle = (a * 0.80 + 12, 0.62 * b + 18)
            blade = ellipse(np.abs(x), y, *middle, 34 * reach, 3.6, angle=-0.75)
            bone = np.maximum(bone, blade)
        return bone

    def spinal_canal(self, x: Array, y: Array) -> Array:
        return ellipse(x, y, 0.0, 0.64 * self.half_depth_mm + 22, 8.5, 8.0)


class SmoothNoise:
    """A seeded 3-D random field of about unit variance and grain ``cell_mm``, cut at any height."""

    def __init__(
        self, rng: np.random.Generator, cell_mm: float, extent_mm: float, height_mm: float
    ):
        across, up = int(np.ceil(extent_mm / cell_mm)) + 1, int(np.ceil(height_mm / cell_mm)) + 2
        self._cells = rng.standard_normal((up, across, across), dtype=np.float32)
        self._cell_mm = cell_mm

    def at(self, z: float, side_px: int) -> Array:
        """The field at height z mm over the whole picture, (side_px, side_px) float32."""
        position = np.clip(z / self._cell_mm, 0, len(self._cells) - 1.001)
        below = int(position)
        f = np.float32(position - below)
        plane = (1 - f) * self._cells[below] + f * self._cells[below + 1]
        plane *= 1.35 / np.sqrt((1 - f) ** 2 + f**2)
        return cv2.resize(plane, (side_px, side_px), interpolation=cv2.INTER_CUBIC)


#: Fractional bits of the coordinates given to OpenCV's drawing.
_SHIFT = 4
#: Canvas pixels a picture pixel, along each side.
_SUPERSAMPLE = 3
#: Segments a branch from one fork to its end.
_PARTS = 3


@dataclass(frozen=True)
class Tubes:
    """n straight tubes from ``start`` to ``end`` (n, 3) mm with ``radius`` (n,) mm."""

    start: Array
    end: Array
    radius: Array

    @classmethod
    def join(cls, parts: list[Tubes]) -> Tubes:
        return cls(*map(np.concatenate, zip(*(vars(p).values() for p in parts), strict=True)))

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
        roots = np.array([[sign * 34, 4, 0.52 * h], [sign * 30, 12, 0.43 * h]], np.float32)
        for root, targets in zip(roots, (side[third:], side[:third]), strict=True):
            trees.append(grow_tree(root, targets, rng, 0.62, 0.36))
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
