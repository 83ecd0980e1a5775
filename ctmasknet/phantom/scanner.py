"""The scanner of a synthetic patient: placing on the table, pixel grid, blur, noise and window."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ctmasknet.phantom.anatomy import Array


@dataclass(frozen=True)
class Scan:
    """How a patient lay, breathed and was scanned.

    Attributes:
        field_mm: side of the square field of view.
        shift_mm: of the middle of the chest from the middle of the field, x and y.
        turn: of the patient about z, radians.
        noise_hu: standard deviation of the noise; ``noise_blur_px`` is its grain.
        sharpness_px: standard deviation of the blur.
        slab_mm: slice thickness.
        motion_mm: how far the patient moved in x during a slice.
        round_field: black outside the circle of the field, as some scanners write it.
        table_mm: gap between back and table.
        haze_hu, haze_mm: attenuation added at the back of the lungs, and how deep it reaches.
    """

    field_mm: float
    shift_mm: tuple[float, float]
    turn: float
    noise_hu: float
    noise_blur_px: float
    sharpness_px: float
    slab_mm: float
    motion_mm: float
    round_field: bool
    table_mm: float
    haze_hu: float
    haze_mm: float

    @classmethod
    def sample(cls, rng: np.random.Generator, body_width_mm: float, hazy: bool) -> Scan:
        """Draw a scan; ``hazy`` asks for haze that can be taken for ground glass."""
        return cls(
            field_mm=float(body_width_mm * rng.uniform(0.98, 1.16)),
            shift_mm=(float(rng.normal(0, 5)), float(rng.normal(-4, 7))),
            turn=float(rng.normal(0, 0.035)),
            noise_hu=float(rng.uniform(14, 48)),
            noise_blur_px=float(rng.uniform(0.35, 0.85)),
            sharpness_px=float(rng.uniform(0.35, 0.75)),
            slab_mm=float(rng.uniform(1.5, 6.0)),
            motion_mm=float(rng.uniform(1.0, 3.0)) if rng.random() < 0.10 else 0.0,
            round_field=bool(rng.random() < 0.35),
            table_mm=float(rng.uniform(4, 22)),
            haze_hu=float(rng.uniform(90, 230) if hazy else rng.uniform(0, 50)),
            haze_mm=float(rng.uniform(6, 16)),
        )


class Grid:
    """The pixels of a scan in the patient's frame.

    Attributes:
        pitch_mm: side of a pixel.
        x, y: (side_px, side_px) float32 mm.
        coarse: the same two on a grid of ``coarse_px``, for shapes that are smooth.
        azimuth: (coarse_px, coarse_px), 0 at the front, radians.
        to_px: (2, 3) affine map from (x, y, 1) mm to columns and rows.
        rim: (side_px, side_px) mm outside the circle of the field.
    """

    def __init__(self, scan: Scan, side_px: int):
        n = side_px
        self.pitch_mm = scan.field_mm / n
        line = ((np.arange(n, dtype=np.float32) + 0.5) / n - 0.5) * np.float32(scan.field_mm)
        across, down = np.float32(scan.shift_mm)
        x, y = line[None] - across, line[:, None] - down
        c, s = np.float32(np.cos(scan.turn)), np.float32(np.sin(scan.turn))
        self.x, self.y = c * x + s * y, c * y - s * x
        self.coarse_px = max(n // 2, min(n, 128))
        size = (self.coarse_px, self.coarse_px)
        self.coarse = tuple(cv2.resize(grid, size) for grid in (self.x, self.y))
        self.azimuth = np.arctan2(self.coarse[0], -self.coarse[1])
        turn = np.array([[c, -s], [s, c]]) / self.pitch_mm
        centre = np.array(scan.shift_mm) / self.pitch_mm + n / 2 - 0.5
        self.to_px = np.concatenate([turn, centre[:, None]], axis=1)
        self.rim = np.hypot(line[None], line[:, None]) - np.float32(scan.field_mm / 2)


def acquire(
    hu: Array, scan: Scan, grid: Grid, window: tuple[float, float], rng: np.random.Generator
) -> Array:
    """Motion, blur, noise, field of view and window (centre, width in HU): (H, W) HU to uint8."""
    n = len(hu)
    if scan.motion_mm:
        step = scan.motion_mm / grid.pitch_mm
        moved = np.array([[1, 0, step], [0, 1, 0.6 * step]], np.float32)
        hu = 0.6 * hu + 0.4 * cv2.warpAffine(hu, moved, (n, n), borderMode=cv2.BORDER_REPLICATE)
    hu = cv2.GaussianBlur(hu, (0, 0), scan.sharpness_px)
    noise = rng.standard_normal((n, n), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), scan.noise_blur_px)
    hu += noise * np.float32(scan.noise_hu / float(noise.std()))
    np.maximum(hu, -1024, out=hu)
    if scan.round_field:
        hu[grid.rim > 0] = -3000
    centre, width = window
    grey = (hu - (centre - width / 2)) * (255 / width)
    return np.clip(np.round(grey), 0, 255).astype(np.uint8)
