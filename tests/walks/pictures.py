"""Raw trees of pictures: COVIDx-CT-3A, CNCB, a COCO file and a CSV file of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from tests.walks.chests import SIDE, Made, chest, lesions_in, save

_KINDS = ("normal", "pneumonia", "covid")
_OF_CNCB = ("Normal", "CP", "NCP")
_UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1000000000000000000000000000"
#: Names of COVIDx-CT-3A by source: form of a slice, class, patient, country.
_SOURCES = {
    "CNCB normal": ("Normal_{p}_9{p}_{s:04d}", 0, "Normal_{p}", "CNCB", "China"),
    "CNCB pneumonia": ("CP_{p}_9{p}_{s:04d}", 1, "CP_{p}", "CNCB", "China"),
    "CNCB covid": ("NCP_{p}_9{p}_{s:04d}", 2, "NCP_{p}", "CNCB", "China"),
    "CTset": ("137covid_patient{p}_SR_2_IM{s:05d}", 2, "patient{p}", "COVID-CTset", "Iran"),
    "CTset normal": ("normal4_patient{p}_SR_2_IM{s:05d}", 0, "patient{p}", "COVID-CTset", "Iran"),
    "COVID-19-20": (*("volume-covid19-A-0{p}_ct-{s:04d}", 2, "volume-covid19-A-0{p}", "TCIA", ""),),
    "Ma": ("coronacases_{p}-{s:04d}", 2, "coronacases_{p}", "COVID-19-CT-Seg", ""),
    "radiopaedia": (
        *("radiopaedia_{p}_8{p}_1-{s:04d}", 2, "radiopaedia_{p}_8{p}", "COVID-19-CT-Seg", ""),
    ),
    "LIDC": (f"LIDC-IDRI-0{{p}}-{_UID}-{{s:04d}}", 0, "LIDC-IDRI-0{p}", "LIDC-IDRI", "USA"),
    "COVID-CT-MD": ("COVIDCTMD-cap{p}-IM{s:04d}", 1, "COVIDCTMD-cap{p}", "COVID-CT-MD", "Iran"),
    "STOIC": ("STOIC-10{p}-{s:04d}", 2, "STOIC-10{p}", "STOIC", "France"),
    "iCTCF": ("HUST-Patient{p}-{s:04d}", 2, "HUST-Patient{p}", "iCTCF", "China"),
}
_HEAD = "patient id,source,country,sex,age,finding,verified finding,slice selection,view,modality"
_FINDINGS = ("Normal", "Pneumonia", "COVID-19")
_SPLITS = ("train", "val", "test")


def covidx_ct3a(folder: Path) -> Made:
    """COVIDx-CT-3A as Kaggle unpacks it: pictures, three lists, metadata.csv."""
    made, raw = Made(), folder / "COVIDx-CT-3A"
    rows, number = [_HEAD], 100
    for split in _SPLITS:
        lines = []
        for form, label, patient, source, country in _SOURCES.values():
            number += 1
            sex, age = "MF"[number % 2], 30 + number % 50
            known = f"{source},{country},{sex},{age},{_FINDINGS[label]},Yes,Expert,Axial,CT"
            rows.append(f"{patient.format(p=number)},{known}")
            for at, one in enumerate(chest(_KINDS[label], number, 2), start=20):
                name = f"{form.format(p=number, s=at)}.png"
                save(raw / "3A_images" / name, one.image)
                lines.append(" ".join(map(str, (name, label, *one.body_box))))
            made.count("covidx_ct3a", **{_KINDS[label]: 2, "patients": 1})
        (raw / f"{split}_COVIDx_CT-3A.txt").write_text("\n".join(lines) + "\n")
    (raw / "metadata.csv").write_text("\n".join(rows) + "\n")
    made.given = {"SCAN": f"COVIDx-CT-3A/3A_images/{name}"}
    made.predicted = [1]
    return made


def cncb_lesions(folder: Path) -> Made:
    """CNCB's lesion set: ``image/110/104.jpg`` and ``mask/110/104.png``, 1 being lung."""
    made, raw = Made(), folder / "raw/CNCB_lesions"
    for patient in range(1, 8):
        for one in chest("covid", patient, 3):
            save(raw / f"image/{patient}/{one.number}.jpg", one.image, quality=95)
            save(raw / f"mask/{patient}/{one.number}.png", one.mask)
            both = sum(lesions_in(one.mask == label) for label in (2, 3))
            made.count("cncb_lesions/both", slices=1, lesions=both)
            made.count("cncb_lesions/merge", slices=1, lesions=lesions_in(one.mask > 1))
        for kind in ("both", "merge"):
            made.count(f"cncb_lesions/{kind}", patients=1)
    made.given = {"SET": "cncb_lesions", "SCAN": f"raw/CNCB_lesions/image/{patient}"}
    made.predicted = [3]
    return made


def cncb(folder: Path) -> Made:
    """CNCB's scans as they unzip, COVIDx-CT-1's lists of them, scans to exclude, slices to take."""
    made, raw = Made(), folder / "CNCB"
    excluded, lesions, number = [], ["imgpath"], 300
    for split in _SPLITS:
        lines = []
        for label, word in enumerate(_OF_CNCB):
            for of_class in range(3):
                number += 1
                scan = 1000 + number
                for at, one in enumerate(chest(_KINDS[label], number, 3), start=20):
                    save(raw / f"{word}/{number}/{scan}/{at:04d}.png", one.image)
                    name = f"{word}_{number}_{scan}_{at:04d}.png"
                    lines.append(" ".join(map(str, (name, label, *one.body_box))))
                if of_class == 2:
                    excluded.append(f"{word} {scan}")
                    continue
                taken = 3
                if label:  # the first two slices show lesions
                    lesions += [f"{word}/{number}/{scan}/{at:04d}.png" for at in (20, 21)]
                    taken = 2
                made.count("cncb", **{_KINDS[label]: taken, "patients": 1})
        (folder / f"{split}_COVIDx_CT.txt").write_text("\n".join(lines) + "\n")
    (folder / "cncb_exclude_list.txt").write_text("\n".join(excluded) + "\n")
    (folder / "lesions_slices.csv").write_text("\n".join(lesions) + "\n")
    made.given = {"SET": "cncb", "SCAN": f"CNCB/{word}/{number}/{scan}"}
    made.predicted = [3]
    return made


_FIVE = ("ggo", "consolidation", "crazy_paving", "fibrosis", "effusion")


def own(folder: Path) -> Made:
    """A COCO json as CVAT exports it, five classes, and a CSV file with two image classes."""
    made, pictures = Made(), folder / "pictures"
    images, annotations, rows = [], [], ["path,class,patient,split"]
    for number in range(9):
        for at, one in enumerate(chest("covid", number, 2)):
            name = f"case{number}_{at}.png"
            save(pictures / name, one.image)
            images.append(
                {
                    **{"id": len(images) + 1, "width": SIDE, "height": SIDE, "file_name": name},
                    **{"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
                }
            )
            boxes = _outlined(one.mask)
            for box in boxes:
                annotations.append(_annotation(len(annotations), len(images), box))
            made.count("mine/lesions", slices=1, lesions=len(boxes))
        made.count("mine/lesions", patients=1)
    for number in range(12):
        kind, word = (("covid", "ill"), ("normal", "well"))[number % 2]
        split = _SPLITS[number // 2 % 3]
        for at, one in enumerate(chest(kind, 40 + number, 2)):
            save(pictures / f"other{number}_{at}.png", one.image)
            rows.append(f"other{number}_{at}.png,{word},other{number},{split}")
        made.count("ours", **{word: 2, "patients": 1})
    document = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "version": ""},
        "categories": [
            {"id": number, "name": name, "supercategory": ""}
            for number, name in enumerate(_FIVE, start=1)
        ],
        **{"images": images, "annotations": annotations},
    }
    (folder / "instances.json").write_text(json.dumps(document))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    made.predicted = [len(images) + 24]
    return made


def _outlined(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """x, y, width, height of lesions, as somebody would draw them."""
    labels, _ = ndimage.label(mask > 1, np.ones((3, 3)))
    boxes = [
        (x.start, y.start, x.stop - x.start, y.stop - y.start)
        for y, x in ndimage.find_objects(labels)
    ]
    return [box for box in boxes if min(box[2:]) > 5]


def _annotation(number: int, image: int, box: tuple[int, int, int, int]) -> dict:
    x, y, width, height = map(float, box)
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        **{"id": number + 1, "image_id": image, "category_id": number % len(_FIVE) + 1},
        **{"segmentation": [corners], "area": width * height, "bbox": [x, y, width, height]},
        **{"iscrowd": 0, "attributes": {"occluded": False}},
    }
