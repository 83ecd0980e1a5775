"""Pictures of reported slices as data URIs: the slice itself, found by the name that predictions
have for it; what a model finds in it, drawn (its best lesions, and which boxes moved the decision);
pictures made before.
"""

from __future__ import annotations

import base64
import functools
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from ctmasknet.config import finds_lesions, is_classifier, names_scans, reads_rows
from ctmasknet.ct.archive import is_archive
from ctmasknet.ct.arrays import Axes, parse_axes
from ctmasknet.ct.find import natural_key
from ctmasknet.ct.pictures import read_rgb
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import CTSlice, Rescale, Window, as_rescale
from ctmasknet.draw.canvas import as_rgb
from ctmasknet.draw.lesions import draw_lesions, lesions_of
from ctmasknet.engine.setup import BEST_CHECKPOINT, inference_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.explain.attribution import CAVEAT, attribute
from ctmasknet.explain.drawing import draw_box_weights, heaviest
from ctmasknet.modeling.meta_arch import head_rows
from ctmasknet.names import IMAGE_SUFFIXES
from ctmasknet.predict.gallery import CONTACT_SHEET
from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.shown import read_entry
from ctmasknet.report.source import dataset_entries, json_lines, run_folders

#: Number of a slice inside its file, as :class:`CTSlice` names it.
FRAME_NUMBER = re.compile(r"#\d{4,}$")


@dataclass(frozen=True)
class FoundSlice:
    """A slice that was found: ``entry`` is its dataset dict (``file_name`` at least), ``pixels``
    (H, W, 3) uint8 RGB, uncropped."""

    entry: Mapping[str, Any]
    pixels: np.ndarray


class SliceFiles:
    """Finds slices of a data set, pictures, and slices of DICOM and NIfTI files.

    Names in predictions may be a stranger's: a file that they name elsewhere is not looked at.

    Args:
        dataset: name of the data set, whose prepared json tells where slices lie; None without.
        images: folder below which slices lie, and that relative names are relative to.
        window: shows HU as grey levels.
        folder: of the run, where they may lie as well; without either they may lie anywhere.
        rescale, axes: see :func:`ctmasknet.ct.read.read_scans`.

    Attributes:
        elsewhere: names of files that are there, but below neither folder.

    Raises:
        CTMaskNetError: ``images`` does not exist.
    """

    def __init__(
        self,
        dataset: str | None = None,
        images: str | os.PathLike | None = None,
        window: Window | None = None,
        folder: str | os.PathLike | None = None,
        rescale: Rescale | None = None,
        axes: Axes | None = None,
    ):
        self.elsewhere: set[str] = set()
        self._entries = dataset_entries(dataset)
        if images is not None and not Path(images).is_dir():
            raise CTMaskNetError(f"{images}: no such folder; correct `images`")
        self._folders = [Path(one) for one in (images, folder) if one is not None]
        self._window, self._rescale = window or Window(), rescale
        # Slices of a volume come one after the other
        self._volume = functools.lru_cache(maxsize=4)(functools.partial(_slices_of, rescale, axes))

    def find(self, file: str) -> FoundSlice | None:
        """The slice of that name, None where there is no file.

        Raises:
            CTMaskNetError: a file that is there but cannot be read.
        """
        entry = self._entries.get(file)
        if entry is not None and os.path.isfile(entry["file_name"]):
            return FoundSlice(entry, read_entry(entry))
        name = FRAME_NUMBER.sub("", file)
        for path in [*(one / name for one in self._folders), Path(name)]:
            source = _file_with(path)
            if source is None:
                continue
            if self._folders and not any(lies_below(source, one) for one in self._folders):
                self.elsewhere.add(name)
                continue
            # A page of a TIFF is named as a slice of a volume is
            is_picture = path.suffix.lower() in IMAGE_SUFFIXES and name == file
            if is_picture and source == path and self._rescale is None:
                entry = {"file_name": str(path)}
                return FoundSlice(entry, read_entry(entry))
            wanted = f"{path}{file[len(name) :]}"
            for one in self._volume(str(source)):
                if one.name == wanted:
                    return FoundSlice({"file_name": wanted}, as_rgb(one.pixels(self._window)))
        return None


def _file_with(path: Path) -> Path | None:
    """The file that a path names: itself, or the zip that it leads into."""
    if os.path.isfile(path):
        return path
    return next((one for one in path.parents if is_archive(one.name) and os.path.isfile(one)), None)


def lies_below(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder or deeper, wherever links lead."""
    return path.resolve().is_relative_to(folder.resolve())


def recorded_window(entries: Sequence[Mapping[str, Any]]) -> Window | None:
    """The HU window of the latest run in ``run.json`` that states one."""
    for entry in reversed(entries):
        config = entry.get("config")
        inputs = config.get("INPUT") if isinstance(config, dict) else None
        if isinstance(inputs, dict) and {"WINDOW_CENTER_HU", "WINDOW_WIDTH_HU"} <= set(inputs):
            return Window(inputs["WINDOW_CENTER_HU"], inputs["WINDOW_WIDTH_HU"])
    return None


def recorded_rescale(entries: Sequence[Mapping[str, Any]]) -> Rescale | None:
    """The rescale that the latest run in ``run.json`` was given."""
    return as_rescale(_recorded_options(entries).get("rescale"))


def recorded_axes(entries: Sequence[Mapping[str, Any]]) -> Axes | None:
    """The order of axes that the latest run in ``run.json`` was given."""
    axes = _recorded_options(entries).get("axes")
    return parse_axes(axes) if isinstance(axes, str) else None


def _recorded_options(entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    settings = entries[-1].get("settings") if entries else None
    options = settings.get("options") if isinstance(settings, dict) else None
    return options if isinstance(options, dict) else {}


def _slices_of(rescale: Rescale | None, axes: Axes | None, path: str) -> tuple[CTSlice, ...]:
    scans = read_scans([path], rescale=rescale, axes=axes)
    return tuple(one for scan in scans for one in scan.slices)


#: Longer side (px) of a slice at most, and of a picture from a folder, which may hold panels and
#: text.
SLICE_PX, PAGE_PX = 768, 900
_QUALITY = 72
#: Keys of a line that name a picture, and its caption.
_PICTURE_KEYS = {
    "picture": "box weights: input to the decision, not its cause",
    "overlay": "lesions",
}
#: A reported slice and what was found of it -> (H, W, 3) uint8 RGB pictures with captions.
Painter = Callable[[SlicePrediction, FoundSlice], list[tuple[np.ndarray, str]]]


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: ``uri`` is a data URI, ``width`` and ``height`` px."""

    caption: str
    alt: str
    uri: str
    width: int
    height: int


class SlicePictures:
    """All pictures there are of a reported slice.

    Args:
        names: of all reported slices.
        files: finds them.
        folders: pictures made before, see :func:`index_pictures`; each has to hold one of these
            slices.
        more: a folder that may hold some.
        painter: draws evidence, see :func:`evidence_painter`; None draws none.

    Raises:
        CTMaskNetError: a folder that does not exist, tells nothing, or shows other slices.
    """

    def __init__(
        self,
        names: Iterable[str],
        files: SliceFiles,
        *,
        folders: Iterable[str | os.PathLike] = (),
        more: str | os.PathLike | None = None,
        painter: Painter | None = None,
    ):
        names = list(names)
        self._stems = Counter(_stem(name) for name in names)
        self._files = files
        self._made = []
        for folder in folders:
            made = index_pictures(folder)
            if not made:
                raise CTMaskNetError(
                    f"{folder}: names no picture that tells its slice; correct `pictures`"
                )
            if not any(self._made_of(made, name) for name in names):
                raise CTMaskNetError(
                    f"{folder}: its pictures are of other slices than the predictions; correct "
                    "`pictures`"
                )
            self._made.append(made)
        if more is not None:
            self._made.append(index_pictures(more))
        self._painter = painter

    def of(self, row: Any) -> list[Picture]:
        """The slice as it is, the evidence in it, and pictures from folders; none where no file is
        found.

        Args:
            row: tells its ``file``; a :class:`SlicePrediction` where a painter is at work.

        Raises:
            CTMaskNetError: a file that is there but cannot be read.
        """
        pictures = []
        found = self._files.find(row.file)
        if found is not None:
            pictures.append(encode(found.pixels, "slice", f"CT slice {row.file}"))
            for drawn, caption in self._painter(row, found) if self._painter else ():
                pictures.append(encode(drawn, caption, f"CT slice {row.file}: {caption}"))
        for made in self._made:
            for caption, path in self._made_of(made, row.file):
                pixels = read_rgb(path, is_slice=False)
                pictures.append(encode(pixels, caption, f"{caption} of {row.file}", PAGE_PX))
        return pictures

    def _made_of(
        self, made: Mapping[str, list[tuple[str, Path]]], file: str
    ) -> list[tuple[str, Path]]:
        """(caption, file) of a slice's pictures in a folder, by its name or its own stem."""
        stem = _stem(file)
        return made.get(file) or (made.get(stem, []) if self._stems[stem] == 1 else [])


def index_pictures(folder: str | os.PathLike) -> dict[str, list[tuple[str, Path]]]:
    """Pictures in a folder by the slice they show.

    A ``.jsonl`` file there tells: lines with ``file`` and ``picture`` (``tools/explain.py``) or
    ``overlay`` (``tools/predict.py``), below the folder, by name or else by stem. Otherwise a
    picture belongs to the slice whose stem it has, after the number in front where all are numbered
    as by ``tools/visualize.py`` (``001_110_104.png`` shows ``110_104``). A stem that several
    pictures or slices have tells nothing.

    Returns:
        name or stem of a slice -> (caption, file) of each picture.

    Raises:
        CTMaskNetError: no such folder, no picture in it, or a broken line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CTMaskNetError(f"{folder}: no such folder; correct `pictures`")
    told: dict[str, list[tuple[str, Path]]] = {}
    listings = sorted(folder.glob("*.jsonl"))
    for listing in listings:
        for item in json_lines(listing):
            for key, caption in _PICTURE_KEYS.items():
                path = folder / str(item.get(key, ""))
                if "file" in item and os.path.isfile(path) and lies_below(path, folder):
                    told.setdefault(str(item["file"]), []).append((caption, path))
    if listings:
        # The same slices may be named by another path there
        stems = Counter(_stem(name) for name in told)
        return {_stem(name): of for name, of in told.items() if stems[_stem(name)] == 1} | told
    paths = [
        path
        for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.name != CONTACT_SHEET
        and lies_below(path, folder)
    ]
    if not paths:
        raise CTMaskNetError(f"{folder}: no picture in this folder; correct `pictures`")
    numbers = [f"{number:03d}_" for number in range(1, len(paths) + 1)]
    numbered = all(map(str.startswith, [path.name for path in paths], numbers))
    for path, number in zip(paths, numbers, strict=True):
        stem = path.stem.removeprefix(number) if numbered else path.stem
        told.setdefault(stem, []).append((folder.name, path))
    return {stem: pictures for stem, pictures in told.items() if len(pictures) == 1}


def encode(pixels: np.ndarray, caption: str, alt: str, longer_side_px: int = SLICE_PX) -> Picture:
    """A (H, W, 3) uint8 RGB array as WebP inside a data URI, reduced to ``longer_side_px``."""
    image = Image.fromarray(pixels)
    image.thumbnail((longer_side_px, longer_side_px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="WEBP", quality=_QUALITY, method=4)
    coded = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(caption, alt, f"data:image/webp;base64,{coded}", image.width, image.height)


def _stem(file: str) -> str:
    return Path(file).stem


#: Lesions and box weights drawn of a slice. An error often comes of lesions that score low, so none
#: is left out for its score, as other pictures do.
_MOST = 5
#: Scores of the model that draws may differ by so much from those reported (half precision, GPU).
_SAME_SCORE = 0.1


def evidence_painter(
    config_file: str,
    opts: Sequence[str],
    run: str | os.PathLike,
    class_names: Sequence[str],
    weights: str | None = None,
    score_threshold: float = 0.75,
) -> Painter:
    """Load the model and return what draws a slice's lesions and, for a classifier, the weights of
    its boxes for the called class (exact occlusion, see :mod:`ctmasknet.explain`).

    Args:
        config_file: of a classifier or a detector; "" where the weights state theirs.
        opts: ``KEY VALUE`` overrides.
        run: folder of the run, or of one of its data sets, whose ``model_best.pth`` is used unless
            ``opts`` name weights or OUTPUT_DIR.
        class_names: of the predictions; a classifier has to have the same.
        weights: the file; default as ``opts`` and ``run`` say.
        score_threshold: lesions that do not score more are dotted.

    Raises:
        CTMaskNetError: see :func:`inference_cfg` and :class:`CTPredictor`; other classes. The
            painter raises it for a slice that the model scores otherwise than reported.
    """
    predictor, cfg = _of_these_classes(config_file, opts, run, class_names, weights)
    classifies = is_classifier(cfg)

    def paint(row: SlicePrediction, slice_: FoundSlice) -> list[tuple[np.ndarray, str]]:
        item = predictor.mapped(slice_.entry, slice_.pixels)
        (found,) = predictor.predict([item])
        pixels = as_rgb(slice_.pixels, item.get("crop_box"))
        drawn = []
        if predictor.lesions:
            drawn.append(_lesions(pixels, found, predictor.lesion_classes, score_threshold))
        if classifies:
            _check_same_scores(cfg, row.file, found, row.scores)
        if reads_rows(cfg):
            head = predictor.model.image_head
            drawn.append(_box_weights(pixels, found, head, row.pred, class_names))
        return drawn

    return paint


def _of_these_classes(
    config_file: str,
    opts: Sequence[str],
    run: str | os.PathLike,
    class_names: Sequence[str],
    weights: str | None,
) -> tuple[CTPredictor, CfgNode]:
    """The model that shows what is behind predictions, and its configuration; see
    :func:`evidence_painter`."""
    opts = list(opts)
    named = weights or {"MODEL.WEIGHTS", "OUTPUT_DIR"} & set(opts[::2])
    folders = [] if named else run_folders(Path(run))
    own = [folder for folder in folders if (folder / BEST_CHECKPOINT).is_file()]
    opts += ["OUTPUT_DIR", str(own[0])] if own else []
    # Classes are those of the weights: the data set need not be on this machine
    cfg, _ = inference_cfg(config_file, opts, weights)
    classifies = is_classifier(cfg)
    if classifies and list(cfg.MODEL.IMAGE_HEAD.CLASSES) != list(class_names):
        raise CTMaskNetError(
            f"{cfg.MODEL.WEIGHTS}: classes {', '.join(cfg.MODEL.IMAGE_HEAD.CLASSES)}, but the "
            f"predictions have {', '.join(class_names)}; give the model that made them"
        )
    if names_scans(cfg):
        raise CTMaskNetError(
            f"{cfg.MODEL.WEIGHTS}: names whole scans, so a slice alone has nothing to draw; leave "
            "the weights out"
        )
    return CTPredictor(cfg, lesions=finds_lesions(cfg)), cfg


def _check_same_scores(
    cfg: CfgNode, file: str, found: Mapping[str, Any], scores: Sequence[float]
) -> None:
    gap = np.abs(np.asarray(found["scores"].tolist()) - np.asarray(scores)).max()
    if gap > _SAME_SCORE:
        raise CTMaskNetError(
            f"{file}: {cfg.MODEL.WEIGHTS} scores it otherwise than the predictions "
            f"(by {gap:.2f}); give the weights that made them"
        )


def boxes_that_moved(
    config_file: str,
    opts: Sequence[str],
    run: str | os.PathLike,
    class_names: Sequence[str],
    weights: str | None = None,
) -> Callable[[Mapping[str, Any], CTSlice], list[list[float]]]:
    """Load the model and return what tells the boxes that moved a slice's called class most.

    Args:
        config_file, opts, run, class_names, weights: as of :func:`evidence_painter`.

    Returns:
        (line of the slice in ``predictions.jsonl``, the slice) -> [x0, y0, x1, y1 (px), weight] of
        at most five boxes, the heaviest first.

    Raises:
        CTMaskNetError: as of :func:`evidence_painter`; a model that ranks no boxes.
    """
    predictor, cfg = _of_these_classes(config_file, opts, run, class_names, weights)
    if not reads_rows(cfg):
        raise CTMaskNetError(
            f"{cfg.MODEL.WEIGHTS}: its classes do not come of ranked boxes; leave the weights out"
        )
    window = Window(cfg.INPUT.WINDOW_CENTER_HU, cfg.INPUT.WINDOW_WIDTH_HU)

    def tell(line: Mapping[str, Any], source: CTSlice) -> list[list[float]]:
        item = predictor.mapped({"file_name": line["file"]}, as_rgb(source.pixels(window)))
        (found,) = predictor.predict([item])
        scores = line["scores"]
        _check_same_scores(cfg, line["file"], found, [scores[name] for name in class_names])
        target = list(class_names).index(line["pred"])
        boxes, weights = _boxes_and_weights(found, predictor.model.image_head, target)
        return [
            [*(round(side, 1) for side in boxes[one].tolist()), round(float(weights[one]), 3)]
            for one in heaviest(weights, _MOST)
        ]

    return tell


def _lesions(
    pixels: np.ndarray,
    found: Mapping[str, Any],
    lesion_classes: Sequence[str],
    threshold: float = 0.75,
) -> tuple[np.ndarray, str]:
    lesions = lesions_of(found["instances"], *pixels.shape[:2])
    best = sorted(lesions, key=lambda lesion: -lesion.score)[:_MOST]
    caption = "no lesion found"
    if best:
        above = sum(lesion.score > threshold for lesion in lesions)
        caption = (
            f"{len(best)} best of {len(lesions)} candidates, {above} above {threshold:g} "
            f"(others dotted), highest score {best[0].score:.2f}"
        )
    # On a picture of this size labels would hide what they name
    how = {"labels": False, "dotted_to": threshold}
    return draw_lesions(pixels, best, lesion_classes, **how), caption


def _boxes_and_weights(
    found: Mapping[str, Any], head: torch.nn.Module, target: int
) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) ranked boxes in px, and (n,) how far each moved the logit of class ``target``."""
    ranked = found["ranked_instances"]
    weights = attribute(head, head_rows(found), len(ranked)).weights[:, target]
    return ranked.pred_boxes.tensor.cpu().numpy(), weights.cpu().numpy()


def _box_weights(
    pixels: np.ndarray,
    found: Mapping[str, Any],
    head: torch.nn.Module,
    target: int,
    class_names: Sequence[str],
) -> tuple[np.ndarray, str]:
    boxes, weights = _boxes_and_weights(found, head, target)
    caption = f"boxes that moved {class_names[target]} most, solid for, dashed against; {CAVEAT}"
    if not len(heaviest(weights, _MOST)):
        caption = f"no box moved {class_names[target]}"
    return draw_box_weights(pixels, boxes, weights, most=_MOST), caption
