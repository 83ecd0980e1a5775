"""A synthetic chest-CT patient as slices: anatomy and lesions as HU, through the scanner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.phantom.anatomy import (
    Anatomy,
    Array,
    Shapes,
    SmoothNoise,
    Tubes,
    airways,
    draw_tubes,
    vessels,
)
from ctmasknet.phantom.lesions import LesionPicture, paint_lesions, plan_covid, plan_pneumonia
from ctmasknet.phantom.scanner import Grid, Scan, acquire

#: What all synthetic patients share, and their recipe states: the window whose ends become 0 and
#: 255; the shares (0..1) of ground glass and of consolidation from which a lung pixel is labelled
#: so; the share of the picture that has lesions in every infected slice; the distance of
#: neighbouring slice numbers.
SETTINGS = {
    "window_centre_hu": -600.0,
    "window_width_hu": 1500.0,
    "ggo_threshold": 0.35,
    "consolidation_threshold": 0.5,
    "min_lesion_share": 0.002,
    "spacing_mm": 2.5,
}


@dataclass(frozen=True)
class PhantomSlice:
    """One axial slice.

    Attributes:
        image: (H, W) uint8, the patient's right on the left, spine down.
        mask: (H, W) uint8, 0 background, 1 lung (air-filled, vessels included), 2 GGO, 3
            consolidation.
        body_box: x0, y0, x1, y1 px, the outline of the body; x1 and y1 are one past its last pixel.
        z: height over the lung base, mm.
        number: slice number, counted from the top of the scan.
    """

    image: Array
    mask: Array
    body_box: tuple[int, int, int, int]
    z: float
    number: int


@dataclass(frozen=True)
class _Fields(Shapes):
    """Shapes of one slice, (H, W) float32, mm and positive inside."""

    body: Array
    bones: Array


def _blend(hu: Array, share: Array, value) -> None:
    """In place: ``share`` of each pixel becomes ``value``."""
    hu += share * (value - hu)


class PhantomPatient:
    """Everything that the slices of one patient share, made once; :meth:`slice` draws one.

    Args:
        kind: a name of :data:`IMAGE_CLASSES`.
        seed: of the whole data set.
        patient: number of the patient.
        side_px: height and width of the slices.
    """

    def __init__(self, kind: str, seed: int, patient: int, side_px: int):
        if kind not in IMAGE_CLASSES:
            raise CTMaskNetError(
                f"kind {kind}: not a slice class; use one of {', '.join(IMAGE_CLASSES)}"
            )
        if side_px < 32:
            raise CTMaskNetError(f"side {side_px} px: too small for a chest; use at least 32")
        self.kind, self.side_px = kind, side_px
        self._key = [seed, patient, IMAGE_CLASSES.index(kind)]
        rng = _generator(seed, patient, kind)
        self.anatomy = anatomy = Anatomy.sample(rng)
        # Distractors are commoner in normal patients: they are what makes those hard.
        width = 2 * (anatomy.half_width_mm + anatomy.wall_side_mm)
        hazy = rng.random() < (0.30 if kind == "normal" else 0.12)
        self._scan = Scan.sample(rng, width, hazy)
        self._grid = Grid(self._scan, side_px)
        self._vessels, self._nodules = vessels(anatomy, rng), self._distractors(rng)
        self._airways = airways(anatomy, rng)
        self._walled = self._airways.wider_than(1.6)
        extent, height = self._scan.field_mm, anatomy.height_mm * 1.05
        self._broad = SmoothNoise(rng, 30.0, extent, height)
        self._middle = SmoothNoise(rng, 11.0, extent, height)
        self._fine = SmoothNoise(rng, 4.5, extent, height)
        self.plan_lesions(attempt=0)

    def plan_lesions(self, attempt: int) -> None:
        """Give the patient lesions; each attempt is another set in the same chest."""
        rng = np.random.default_rng([*self._key, 1, attempt])
        plan = {"pneumonia": plan_pneumonia, "covid": plan_covid}.get(self.kind)
        self.lesions = plan(self.anatomy, rng) if plan else []
        self._drawn: dict[int, tuple] = {}

    def _distractors(self, rng: np.random.Generator) -> Tubes:
        """Small nodules and bands of atelectasis: solid, not labelled."""
        a, starts, ends, radii = self.anatomy, [], [], []
        many = self.kind == "normal"
        for _ in range(rng.poisson(2.5 if many else 1.0)):
            point = rng.uniform((-1, -1, 0.1), (1, 1, 0.9))
            point *= (a.half_width_mm, a.half_depth_mm, a.height_mm)
            starts.append(point)
            ends.append(point + (0, 0, 0.5))
            radii.append(rng.uniform(1.5, 3.6))
        for _ in range(rng.poisson(1.5 if many else 0.8)):
            # A thin sheet at the back of the base, seen as a line in several slices.
            angle, length = rng.uniform(-0.6, 0.6), rng.uniform(12, 32)
            side = rng.choice((-1, 1))
            middle = np.array([side * rng.uniform(45, 100), rng.uniform(20, 70), 0.0])
            along = np.array([np.cos(angle), np.sin(angle), 0.0]) * length / 2
            base = rng.uniform(0.1, 0.3) * a.height_mm
            for level in np.arange(0, rng.uniform(4, 14), 1.5):
                shift = np.array([0, 0.3 * level, base + level])
                starts.append(middle - along + shift)
                ends.append(middle + along + shift)
                radii.append(0.8)
        points = (np.array(p, np.float32).reshape(-1, 3) for p in (starts, ends))
        return Tubes(*points, np.array(radii, np.float32))

    def numbers(self) -> range:
        """Slice numbers that cut the lungs well, top to bottom."""
        return _numbers(self.anatomy)

    def height(self, number: int) -> float:
        """Height of a slice over the lung base, mm."""
        return 0.93 * self.anatomy.height_mm - number * SETTINGS["spacing_mm"]

    def _geometry(self, number: int) -> tuple[_Fields, LesionPicture]:
        """Where shapes and lesions are in a slice; kept until the slice is drawn."""
        if number in self._drawn:
            return self._drawn[number]
        z, grid = self.height(number), self._grid
        broad = self._broad.at(z, grid.coarse_px)
        # The same smooth push of a few mm for all shapes keeps outlines from being perfect curves.
        x = grid.coarse[0] + np.float32(2.0) * broad
        y = grid.coarse[1] - np.float32(2.0) * broad[::-1]
        coarse = self.anatomy.shapes(x, y, np.float32(z))
        bones = self.anatomy.bones(x, y, z, coarse.cavity, grid.azimuth)
        body = self.anatomy.body(*grid.coarse, z)
        shapes = _Fields(*map(self._full, (*vars(coarse).values(), body, bones)))
        noise = 0.75 * self._full(broad) + 0.6 * self._middle.at(z, self.side_px)
        if self.lesions:
            noise += 0.25 * self._fine.at(z, self.side_px)
        place = (self.anatomy, grid.x, grid.y, z)
        picture = paint_lesions(self.lesions, *place, shapes.cavity, noise)
        self._drawn[number] = shapes, picture
        return self._drawn[number]

    def _full(self, field: Array) -> Array:
        if field.shape[0] == self.side_px:
            return field
        return cv2.resize(field, (self.side_px, self.side_px), interpolation=cv2.INTER_LINEAR)

    def _label(self, lung: Array, picture: LesionPicture) -> Array:
        inside = lung > 0
        mask = inside.astype(np.uint8)
        mask[inside & (picture.ggo >= SETTINGS["ggo_threshold"])] = 2
        mask[inside & (picture.consolidation >= SETTINGS["consolidation_threshold"])] = 3
        return mask

    def labels(self, number: int) -> Array:
        """The exact mask (H, W) uint8 of a slice, without drawing it."""
        shapes, picture = self._geometry(number)
        return self._label(shapes.lung, picture)

    def slice(self, number: int) -> PhantomSlice:
        """Draw one slice."""
        z = self.height(number)
        shapes, picture = self._geometry(number)
        del self._drawn[number]
        hu = self._chest(z, shapes)
        lung = self._edge(shapes.lung)
        _blend(hu, lung, self._lung(z, shapes.cavity, picture))
        self._large_airways(hu, z, lung, shapes.body)
        rng = np.random.default_rng([*self._key, 2, number])
        window = SETTINGS["window_centre_hu"], SETTINGS["window_width_hu"]
        image = acquire(hu, self._scan, self._grid, window, rng)
        box = cv2.boundingRect((shapes.body > 0).astype(np.uint8))
        body_box = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        return PhantomSlice(image, self._label(shapes.lung, picture), body_box, z, number)

    def _edge(self, field: Array) -> Array:
        """Share of each pixel inside a shape, from its field in mm."""
        return np.clip(field * np.float32(1 / self._grid.pitch_mm) + np.float32(0.5), 0, 1)

    def _tubes(self, tubes: Tubes, z: float) -> Array:
        return draw_tubes(
            tubes, z, self._scan.slab_mm, self._grid.to_px, self.side_px, self._grid.pitch_mm
        )

    def _chest(self, z: float, shapes: _Fields) -> Array:
        """HU (H, W) of air, table, chest wall and the middle, with no lungs yet."""
        a, s, body, x, y = self.anatomy, self._scan, shapes.body, self._grid.x, self._grid.y
        hu = np.full(y.shape, -1000, np.float32)
        back = a.half_depth_mm * 1.05 + a.wall_front_mm + 9 + s.table_mm
        sag = y - back + x * x * np.float32(1 / 1400)
        _blend(hu, np.clip(1.2 - np.abs(np.abs(sag - 9) - 9) / self._grid.pitch_mm, 0, 1), -350)
        _blend(hu, self._edge(body), -20)
        _blend(hu, self._edge(body - 2.2), -104)
        behind = np.clip(y * np.float32(1 / a.half_depth_mm), 0, 1)
        wall = 11 + a.muscle_mm * (0.6 + 1.6 * behind * behind)
        _blend(hu, self._edge(np.minimum(shapes.cavity + wall, body - 4)), 48)
        # Fat between the muscle layers and around the vessels of the mediastinum.
        streak = self._fine.at(z, self.side_px) * np.float32(14)
        _blend(hu, self._edge(1.1 - np.abs(shapes.cavity + 13.5)), -70)
        _blend(hu, self._edge(shapes.cavity), -60 + streak)
        _blend(hu, self._edge(np.maximum(shapes.heart, shapes.liver)), 44)
        _blend(hu, self._edge(shapes.bones), 150 + 260 * np.clip(1 - shapes.bones / 3, 0, 1))
        _blend(hu, self._edge(a.spinal_canal(x, y)), 25)
        return hu + 0.35 * streak

    def _lung(self, z: float, depth: Array, picture: LesionPicture) -> Array:
        """HU (H, W) of the lungs: parenchyma, ground glass, vessels, consolidation over all."""
        a, s, y = self.anatomy, self._scan, self._grid.y
        fine = self._fine.at(z, self.side_px)
        back = np.clip(y * np.float32(0.5 / a.half_depth_mm) + np.float32(0.5), 0, 1)
        low = 1.25 - 0.5 * z / a.height_mm
        hu = a.lung_hu + a.gravity_hu * back + 9 * fine
        near_wall = np.exp(np.maximum(depth, 0) * np.float32(-1 / s.haze_mm))
        hu += s.haze_hu * low * near_wall * np.maximum(2.2 * back - 1.1, 0) * (1 + 0.18 * fine)
        fissure = 1 - np.abs(a.oblique_fissure(self._grid.x, y, z) + 3 * fine)
        hu += np.maximum(fissure, 0) * np.float32(70)
        hu += picture.ggo * picture.ggo_hu * (1 + 0.10 * fine)
        septa = np.clip(1 - np.abs(fine) * 3.2, 0, 1)
        hu += picture.lattice * septa * 210
        np.minimum(hu, -160, out=hu)
        _blend(hu, self._tubes(self._vessels, z), 45)
        if len(self._nodules.radius):
            _blend(hu, self._tubes(self._nodules, z), 20)
        lumen = self._tubes(self._airways, z)
        walls = self._tubes(self._walled.widened(1.0, 0.9), z)
        _blend(hu, np.maximum(walls - lumen, 0), -250)
        _blend(hu, picture.consolidation, 28 + 14 * fine)
        _blend(hu, lumen * (0.55 + 0.4 * picture.consolidation), -940)
        return hu

    def _large_airways(self, hu: Array, z: float, lung: Array, body: Array) -> None:
        """Trachea and main bronchi where they run outside the lungs."""
        large = self._airways.wider_than(3.0)
        outside = (1 - lung) * (body > 0)
        _blend(hu, self._tubes(large.widened(1.0, 1.6), z) * outside, 30)
        _blend(hu, self._tubes(large, z) * outside, -985)


def phantom_patient(
    kind: str, seed: int, side_px: int, slices: int, *, patient: int = 0, infected_only: bool = True
) -> list[PhantomSlice]:
    """Slices of one synthetic patient, top to bottom.

    Seed, patient number and kind decide the outcome, whatever else is made before or beside it.

    Args:
        kind: ``normal``, ``pneumonia`` or ``covid``.
        side_px: height and width.
        slices: how many.
        infected_only: keep slices with visible lesions only, as COVIDx-CT does for pneumonia and
            COVID; otherwise about 30 % are drawn from the whole lung and may show none. Normal
            patients ignore it.

    Raises:
        CTMaskNetError: unknown kind, or more slices than a patient has.
    """
    if slices < 1:
        raise CTMaskNetError(f"{slices} slices a patient: ask for at least 1")
    made = PhantomPatient(kind, seed, patient, side_px)
    shown = 0
    for attempt in range(50):
        made.plan_lesions(attempt)
        rng = np.random.default_rng([*made._key, 3, attempt])
        chosen = _choose(made, slices, infected_only, rng)
        if len(chosen) == slices:
            return [made.slice(number) for number in chosen]
        shown = max(shown, len(chosen))
    raise _too_many(slices, kind, shown)


def check_slices(patients: Iterable[tuple[str, int]], seed: int, slices: int) -> None:
    """Refuse, before any is drawn, more slices than lie in the lungs of a patient.

    Args:
        patients: (kind, number) of each.

    Raises:
        CTMaskNetError: names the number that all of them have.
    """
    heights = (Anatomy.sample(_generator(seed, patient, kind)) for kind, patient in patients)
    most = min(len(_numbers(anatomy)) for anatomy in heights)
    if slices > most:
        raise _too_many(slices, "phantom", most)


def _too_many(slices: int, kind: str, most: int) -> CTMaskNetError:
    return CTMaskNetError(
        f"{slices} slices a patient: one {kind} patient shows at most {most}; ask for fewer"
    )


def _generator(seed: int, patient: int, kind: str) -> np.random.Generator:
    """The one that the anatomy is drawn from first."""
    return np.random.default_rng([seed, patient, IMAGE_CLASSES.index(kind), 0])


def _numbers(anatomy: Anatomy) -> range:
    top = 0.93 * anatomy.height_mm
    return range(1, int((top - 0.09 * anatomy.height_mm) / SETTINGS["spacing_mm"]) + 1)


def _choose(
    made: PhantomPatient, slices: int, infected_only: bool, rng: np.random.Generator
) -> list[int]:
    """Up to ``slices`` slice numbers, ascending, spread over the lung or over its infected part."""
    numbers = np.array(made.numbers())
    if made.kind == "normal":
        return _spread(numbers, slices, rng)
    anywhere = 0 if infected_only else int(rng.binomial(slices, 0.3))
    strength = [max(le.strength_at(made.height(n)) for le in made.lesions) for n in numbers]
    infected = numbers[np.array(strength) > 0.3]
    enough = SETTINGS["min_lesion_share"] * made.side_px**2
    chosen: list[int] = []
    first = _spread(infected, min(slices - anywhere, len(infected)), rng)
    others = [n for n in rng.permutation(infected).tolist() if n not in first]
    for number in [*first, *others]:
        if len(chosen) == slices - anywhere:
            break
        if (made.labels(number) > 1).sum() >= enough:
            chosen.append(number)
    if len(chosen) < slices - anywhere:
        return chosen
    rest = np.array([n for n in numbers if n not in chosen])
    return sorted(chosen + _spread(rest, min(anywhere, len(rest)), rng))


def _spread(numbers: Array, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` distinct entries, one at random from each of as many equal parts."""
    if count < 1 or count > len(numbers):
        return []
    return [int(rng.choice(part)) for part in np.array_split(numbers, count)]
