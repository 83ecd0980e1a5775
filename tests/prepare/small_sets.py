"""Small raw sets, and what the tools made of them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def lesion_mask(index: int) -> np.ndarray:
    """(40, 48): by index modulo 3 without lesion, with GGO, with GGO and C that touch."""
    mask = np.zeros((40, 48), np.uint8)
    mask[2:38, 2:46] = 1
    if index % 3:
        mask[5:20, 5:20] = 2
    if index % 3 == 2:
        mask[5:20, 20:40] = 3
    return mask


def write_slice(images: Path, masks: Path, stem: str, mask: np.ndarray, suffix: str = ".jpg"):
    image = (np.arange(mask.size).reshape(mask.shape) % 251).astype(np.uint8)
    for folder, file, array in ((images, stem + suffix, image), (masks, stem + ".png", mask)):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def write_image(path, level=100, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side), level, dtype=np.uint8)).save(path)


def grouped(tmp_path, text: str) -> str:
    (tmp_path / "groups.csv").write_text(text)
    return str(tmp_path / "groups.csv")


def read(tmp_path: Path, file: str, name: str = "cncb_lesions") -> dict:
    return json.loads((tmp_path / "root" / name / "annotations" / file).read_text())


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def write_list(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
