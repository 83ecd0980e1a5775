"""A tiny model with its checkpoint, and scans of every kind that state what they are."""

from types import SimpleNamespace

import nibabel
import numpy as np
import pydicom
import torch
from detectron2.modeling import build_model
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of

SIDE = 64
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.LESION_CLASSES", ["ggo", "consolidation"]),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.RPN.POST_NMS_TOPK_TEST", 40),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8, 16, 24]], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.2),
    *("INPUT.MIN_SIZE_TEST", SIDE, "TEST.DETECTIONS_PER_IMAGE", 6, "DATALOADER.NUM_WORKERS", 2),
]


def save_model(cfg, folder, name, detector=None):
    """Random weights of ``cfg``: its YAML and its checkpoint. A classifier has its detector's."""
    torch.manual_seed(2)
    model = build_model(cfg)
    if detector is not None:
        torch.nn.init.normal_(model.image_head.fc1.weight, std=0.5)
        weights = torch.load(detector.weights, weights_only=True)["model"]
        assert not model.load_state_dict(weights, strict=False).unexpected_keys
    else:
        heads = model.roi_heads
        # Both classes at scores that differ from box to box, and masks that fill part of a box
        torch.nn.init.normal_(heads.box_head.fc1.weight, std=0.1)
        torch.nn.init.normal_(heads.box_predictor.cls_score.weight, std=0.3)
        torch.nn.init.zeros_(heads.box_predictor.cls_score.weight[-1])
        torch.nn.init.normal_(heads.mask_head.predictor.weight, std=3.0)
    CTMaskNetCheckpointer(model, str(folder), spec=spec_of(cfg)).save(name)
    config = folder / f"{name}.yaml"
    cfg.MODEL.WEIGHTS = ""
    config.write_text(cfg.dump())
    return SimpleNamespace(config=config, weights=folder / f"{name}.pth", cfg=cfg)


def hu_volume(seed, slices, side=SIDE):
    """(slices, rows, columns) int16 HU: body, lungs and blobs, feet first."""
    chance = np.random.default_rng(seed)
    volume = np.full((slices, side, side), -1000, dtype=np.int16)
    volume[:, 8:-8, 4:-4] = 40
    volume[:, 16:-16, 10:-10] = -850
    for plane in volume:
        for _ in range(4):
            row, column = chance.integers(16, side - 24, 2)
            plane[row : row + 8, column : column + 8] = chance.integers(-600, 60)
    return volume


def write_series(folder, volume, patient="P1", flip=False, thickness=2.5):
    """One DICOM series, a file a slice. ``flip``: stored with columns running to the right."""
    folder.mkdir(parents=True, exist_ok=True)
    uids = [generate_uid(entropy_srcs=[patient, str(folder.name), word]) for word in "abc"]
    for number, plane in enumerate(volume):
        header = pydicom.Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CTImageStorage
        instance = generate_uid(entropy_srcs=[uids[0], str(number)])
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = instance
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = uids
        header.PatientID, header.PatientName, header.Modality = patient, patient, "CT"
        header.PatientBirthDate = header.PatientSex = header.StudyID = header.AccessionNumber = ""
        header.StudyDate, header.StudyTime, header.ReferringPhysicianName = "20200301", "120000", ""
        header.SeriesNumber, header.InstanceNumber = 1, number + 1
        header.Rows, header.Columns = plane.shape
        header.PixelSpacing, header.SliceThickness = [0.7, 0.8], thickness
        left = -1 if flip else 1
        header.ImageOrientationPatient = [left, 0, 0, 0, 1, 0]
        header.ImagePositionPatient = [-20 * left, -30, 100 + thickness * number]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation = 15, 1
        header.RescaleSlope, header.RescaleIntercept = 1, -24
        header.PixelData = (plane + 24).astype("<i2").tobytes()
        header.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return folder


def write_pictures(folder, seed, names):
    """8-bit pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(seed)
    for name in names:
        picture = chance.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(picture).save(folder / name)
    return folder


def write_scans(root):
    """A folder: a DICOM series, a NIfTI volume stored its own way, pictures of two patients."""
    write_series(root / "a_dicom", hu_volume(1, 4))
    # Stored (slice, column to the right, row to the front)
    stored = hu_volume(2, 5).transpose(0, 2, 1)[:, ::-1, ::-1]
    affine = np.array([[0, 0.8, 0, -20], [0, 0, 0.7, -30], [3.0, 0, 0, 50], [0, 0, 0, 1]])
    (root / "b_nifti").mkdir()
    nibabel.save(nibabel.Nifti1Image(stored, affine), root / "b_nifti" / "ct.nii.gz")
    names = [f"NCP_{n}_1_{s:04d}.png" for n in (7, 8) for s in range(3)]
    write_pictures(root / "c_pictures", 3, names)
    return root


def words(model, inputs, output, *flags):
    """A command line: flags of the tool, then overrides."""
    flags, overrides = (
        (list(flags), [])
        if "--" not in flags
        else (list(flags[: flags.index("--")]), list(flags[flags.index("--") + 1 :]))
    )
    return [
        *("--config-file", model.config, "--input", *inputs, *flags, "--output", output),
        *("MODEL.WEIGHTS", model.weights),
        # Processes that a test starts compute as it does
        *("MODEL.INFERENCE.ENGINE", "torch", *overrides),
    ]


def files_of(folder):
    """Name -> bytes of all files below a folder, but for those that tell the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "prediction.json")
    }
