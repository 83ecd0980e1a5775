"""Lesions of a synthetic patient: where they sit in 3-D, and how much of each pixel they take at a
height.

A lesion is a ragged blob with a level ``s`` that falls from about 1 in its middle to 0 at its
edge. Ground-glass opacity (GGO) fills it where ``s > 0`` and consolidation where ``s`` passes the
lesion's ``core``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctmasknet.phantom.anatomy import Anatomy, Array, sample_lung_points

#: A core no level reaches: ground glass only.
NO_CORE = 9.0


@dataclass(frozen=True)
class PhantomLesion:
    """One lesion; lengths in mm.

    Attributes:
        centre: x, y, z in the patient's frame.
        reach_mm: radius along the pleura (or in every direction of the slice when
            ``depth_reach_mm`` is 0).
        rise_mm: half height in z.
        depth_mm: depth of the lesion's middle below the pleura of the ribs.
        depth_reach_mm: radius across the pleura, 0 for a round lesion.
        ragged: share of the level that is noise; larger means more irregular and broken edges.
        soft: change of level over which the ground glass fades in.
        core: level at which consolidation begins.
        ggo_hu: attenuation that full ground glass adds to the lung.
        lattice: 0..1, strength of thickened septa inside (crazy paving).
        lobe: the lobe it keeps to (see :meth:`Anatomy.lobe`), or None when it ignores fissures.
    """

    centre: tuple[float, float, float]
    reach_mm: float
    rise_mm: float
    depth_mm: float
    depth_reach_mm: float
    ragged: float
    soft: float
    core: float
    ggo_hu: float
    lattice: float = 0.0
    lobe: int | None = None

    def strength_at(self, z: float) -> float:
        """Level of the middle at height z, noise aside; negative where the slice misses it."""
        return 1 - abs(z - self.centre[2]) / self.rise_mm


@dataclass(frozen=True)
class LesionPicture:
    """Shares 0..1 and HU of all lesions in one slice, each (H, W) float32."""

    ggo: Array
    ggo_hu: Array
    consolidation: Array
    lattice: Array


def _pick(rng: np.random.Generator, points: Array, weights: Array) -> Array:
    return points[rng.choice(len(points), p=weights / weights.sum())]


def plan_covid(anatomy: Anatomy, rng: np.random.Generator) -> list[PhantomLesion]:
    """Several subpleural lesions, mostly ground glass, in 85 % of patients on both sides."""
    severity = rng.beta(1.5, 1.9)
    bilateral = rng.random() < 0.85
    fewest, mean = (5, 1 + 9 * severity) if bilateral else (1, 0.6 + 3 * severity)
    count = fewest + rng.poisson(mean)
    first = rng.choice((-1, 1))
    points = sample_lung_points(anatomy, rng, 1200, 1.5)
    depth = anatomy.shapes(*points.T).cavity
    height = points[:, 2] / anatomy.height_mm
    # COVID favours the lower zones and the back.
    favour = np.exp(-(((height - 0.36) / 0.24) ** 2)) * (
        0.35 + 1 / (1 + np.exp(-points[:, 1] / (0.2 * anatomy.half_depth_mm)))
    )
    stage = rng.beta(0.9, 2.2)
    lesions = []
    for i in range(count):
        # The second lesion of a bilateral patient goes to the other side, the rest anywhere.
        side = first if i == 0 or not bilateral else (-first if i == 1 else rng.choice((-1, 1)))
        peripheral = rng.random() < 0.88
        near = depth < 12 if peripheral else depth > 16
        x, y, z = _pick(rng, points, favour * near * (np.sign(points[:, 0]) == side) + 1e-9)
        reach = float(np.clip(rng.lognormal(np.log(13 + 17 * severity), 0.42), 7, 52))
        across = float(np.clip(rng.lognormal(np.log(9 + 9 * severity), 0.35), 6, 30))
        dense = rng.random() < 0.2 + 0.6 * stage
        lesions.append(
            PhantomLesion(
                centre=(float(x), float(y), float(z)),
                reach_mm=reach if peripheral else 0.8 * reach,
                rise_mm=reach * float(rng.uniform(0.8, 1.5)) + 3,
                depth_mm=float(rng.uniform(0, 0.45)) * across,
                depth_reach_mm=across if peripheral else 0.0,
                ragged=float(rng.uniform(0.14, 0.30)),
                soft=float(rng.uniform(0.28, 0.60)),
                core=float(rng.uniform(0.42, 0.75)) if dense else NO_CORE,
                ggo_hu=float(np.clip(rng.normal(290 + 90 * stage, 60), 170, 460)),
                lattice=float(rng.uniform(0.4, 1.0)) if rng.random() < 0.35 else 0.0,
            )
        )
    return lesions


def plan_pneumonia(anatomy: Anatomy, rng: np.random.Generator) -> list[PhantomLesion]:
    """One lobar or segmental consolidation with a thin halo, sometimes a second patch.

    In 15 % of patients the second patch is in the other lung.
    """
    severity = rng.beta(1.6, 1.8)
    points = sample_lung_points(anatomy, rng, 1200, 3.0)
    lobes = anatomy.lobe(*points.T)
    first = int(rng.choice(5, p=(0.17, 0.15, 0.27, 0.15, 0.26)))
    where = [first]
    if rng.random() < 0.15:
        where.append(int(rng.choice((3, 4) if first < 3 else (0, 1, 2))))
    elif rng.random() < 0.30:
        where.append(int(rng.choice((0, 1, 2) if first < 3 else (3, 4))))
    glassy = rng.random() < 0.09
    depth = anatomy.shapes(*points.T).cavity
    lesions = []
    for i, lobe in enumerate(where):
        scale = 1.0 if i == 0 else rng.uniform(0.35, 0.7)
        reach = float(np.clip(rng.normal(30 + 30 * severity, 5), 18, 70)) * scale
        middle = points[:, 2] / anatomy.height_mm
        favour = (np.abs(middle - 0.45) < 0.36) * (0.2 + (depth < 0.8 * reach))
        x, y, z = _pick(rng, points, favour * (lobes == lobe) + 1e-9)
        core = rng.uniform(0.42, 0.75) if glassy else rng.uniform(0.16, 0.36)
        lesions.append(
            PhantomLesion(
                centre=(float(x), float(y), float(z)),
                reach_mm=reach,
                rise_mm=reach * float(rng.uniform(0.9, 1.5)),
                depth_mm=0.0,
                depth_reach_mm=0.0,
                ragged=float(rng.uniform(0.14, 0.28)),
                soft=float(rng.uniform(0.15, 0.30)),
                core=float(core),
                ggo_hu=float(np.clip(rng.normal(330, 60), 200, 470)),
                lobe=lobe,
            )
        )
    return lesions


def _rise(level: Array) -> Array:
    """Smooth step from 0 at level 0 to 1 at level 1."""
    level = np.clip(level, 0, 1)
    return level * level * (3 - 2 * level)


def paint_lesions(
    lesions: list[PhantomLesion],
    anatomy: Anatomy,
    x: Array,
    y: Array,
    z: float,
    depth: Array,
    noise: Array,
) -> LesionPicture:
    """All lesions at height z.

    Args:
        x, y: (H, W) mm, the pixels in the patient's frame.
        depth: (H, W) mm below the pleura of the ribs.
        noise: (H, W) of unit variance, the patient's 3-D noise at this height.
    """
    ggo, hu, dense, lattice = (np.zeros(x.shape, np.float32) for _ in range(4))
    for lesion in lesions:
        dz = z - lesion.centre[2]
        if abs(dz) > lesion.rise_mm * (1 + 2.2 * lesion.ragged):
            continue
        margin = max(lesion.reach_mm, lesion.depth_reach_mm) * (1 + 2.2 * lesion.ragged)
        near = (np.abs(x - lesion.centre[0]) < margin) & (np.abs(y - lesion.centre[1]) < margin)
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        if not len(rows):
            continue
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        xs, ys = x[box], y[box]
        apart = (xs - lesion.centre[0]) ** 2 + (ys - lesion.centre[1]) ** 2
        tall = (dz / lesion.rise_mm) ** 2
        if lesion.depth_reach_mm:
            inwards = (depth[box] - lesion.depth_mm) ** 2
            q = np.maximum(apart - inwards, 0) / lesion.reach_mm**2
            q += inwards / lesion.depth_reach_mm**2
        else:
            q = apart / lesion.reach_mm**2
        level = 1 - np.sqrt(q + tall) + lesion.ragged * noise[box]
        # Noise may not start islands far outside the blob.
        level = np.minimum(level, 2.2 * (1 + 2 * lesion.ragged - np.sqrt(q + tall)))
        # Neither does it cross to the other lung.
        level = np.minimum(level, xs * np.float32(np.sign(lesion.centre[0]) * 0.5))
        if lesion.lobe is not None:
            level = np.minimum(level, _lobe_edge(lesion.lobe, anatomy, xs, ys, z))
        amount = _rise(level / lesion.soft)
        core = _rise((level - lesion.core) / 0.14 + 0.5)
        stronger = amount > ggo[box]
        hu[box] = np.where(stronger, lesion.ggo_hu, hu[box])
        lattice[box] = np.where(stronger, lesion.lattice * amount, lattice[box])
        ggo[box] = np.maximum(ggo[box], amount)
        dense[box] = np.maximum(dense[box], core)
    return LesionPicture(ggo, hu, dense, lattice)


def _lobe_edge(lobe: int, anatomy: Anatomy, x: Array, y: Array, z: float) -> Array:
    """A level that falls to 0 within 2 mm of the lobe's fissures and is high inside."""
    behind = anatomy.oblique_fissure(x, y, z)
    edge = (behind if lobe in (2, 4) else -behind) * np.float32(0.5)
    if lobe in (0, 1):
        above = (z - 0.5 * anatomy.height_mm) * (1 if lobe == 0 else -1)
        edge = np.minimum(edge, np.float32(above * 0.2 + 0.5))
    return edge
