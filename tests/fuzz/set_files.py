"""What a set is prepared from beside its pictures, archives, and volumes of other programs."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from PIL import Image

from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.ct.sidecar import stated_rescale
from ctmasknet.data.label_masks import LABEL_NAMES
from ctmasknet.data.prepared import SliceRecord
from ctmasknet.names import PatientRule
from ctmasknet.prepare.annotated import prepare_annotated
from ctmasknet.prepare.class_lists import parse_class_lists, rows_of_class_lists
from ctmasknet.prepare.masks.colours import color_values, read_colors
from ctmasknet.prepare.masks.instances import read_instance_table
from ctmasknet.prepare.metadata import PatientMetadata
from ctmasknet.prepare.pairs.stated import read_pairing
from ctmasknet.weights.imported import import_file
from tests.fuzz import mutations
from tests.fuzz.target import Target, bytes_or, csv_bytes, json_bytes, written
from tests.helpers.ct_samples import volume
from tests.helpers.peer_goldens import FOLDER

Damage = Callable[[Path, random.Random], Path]
_STANDIN = FOLDER / "covidnet_ct_standin"
#: In place of a number in a header.
_NUMBERS = ("0", "-1", "1e9", "4294967297", "99999999999999999999", "nan", "inf", "0.5", "x", "")


def lists(folder: Path) -> dict[str, Target]:
    """Tables and lists of text.

    Args:
        folder: for pictures; empty.
    """
    folder.mkdir(parents=True)
    names = [f"NCP_{n}_1_000{n}.png" for n in range(1, 5)]
    for name in names:
        Image.fromarray(np.full((24, 32), 90, np.uint8)).save(folder / name)
    colours = np.zeros((24, 32, 3), np.uint8)
    colours[4:9, 4:9] = 255, 0, 0
    Image.fromarray(colours).save(folder / "colours.png")
    records = {"train": [SliceRecord("a.png", 2, "7", "1", "1")]}
    metadata = "Patient ID,Source,Finding,Age\nNCP_7,x,COVID-19,44\nCP_8,y,Pneumonia,\n"
    instances = "image,value,class\na,1,ggo\na,2,consolidation\nb,1,ggo\n"
    files = [f"{n}.png" for n in range(1, 5)]
    for name in files:
        shutil.copy(folder / names[0], folder / name)
    pairs = "image,mask\n1.png,3.png\n2.png,\n"

    def sidecar(made: Path, rng: random.Random) -> Path:
        content = rng.choice(({"slope": 1, "intercept": -1024}, {"values": "grey"}))
        written(made / "x.png", b"")
        written(made / "x.png.json", json_bytes(rng, content))
        return made / "x.png"

    def class_list(made: Path, rng: random.Random) -> Path:
        text = "\n".join(names[:2])
        changed = mutations.table(text, rng)
        return written(made / "covid.txt", bytes_or(rng, text, lambda: changed))

    def class_rows(path: Path) -> None:
        other = written(path.with_name("normal.txt"), names[3])
        rows_of_class_lists(folder, parse_class_lists([str(path), str(other)]))

    def of_csv(name: str, text: str) -> Damage:
        return lambda made, rng: written(made / name, csv_bytes(rng, text))

    return {
        "metadata": Target(
            of_csv("metadata.csv", metadata), lambda path: PatientMetadata(path).of(records)
        ),
        "pairs": Target(
            of_csv("pairs.csv", pairs),
            lambda path: read_pairing(str(path)).masks_of(files, folder, folder),
        ),
        "instances": Target(of_csv("x.csv", instances), read_instance_table),
        "colours": Target(
            of_csv("x.csv", "color,class\n#ff0000,ggo\n0 0 255,consolidation\n"),
            lambda path: color_values(
                folder / "colours.png", read_colors(str(path)), dict(enumerate(LABEL_NAMES))
            ),
        ),
        "classes": Target(class_list, class_rows),
        "sidecar": Target(sidecar, stated_rescale),
        "annotated": Target(functools.partial(_annotated, folder, names), _prepared),
    }


def _annotated(folder: Path, names: list[str], made: Path, rng: random.Random) -> Path:
    images = [{"id": n, "file_name": name, "patient": str(n)} for n, name in enumerate(names)]
    annotations = [
        {"id": n, "image_id": n, "category_id": 3, "segmentation": [[4, 4, 12, 4, 12, 12, 4, 12]]}
        for n in range(4)
    ]
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "x"}]}
    for name in names:
        shutil.copy(folder / name, made)
    return written(made / "x.json", json_bytes(rng, coco))


def _prepared(path: Path) -> None:
    shares = {"train": 0.5, "val": 0.5}
    prepare_annotated(
        {"": path}, path.parent, path.parent / "out" / "set", rule=PatientRule(), shares=shares
    )


def archives(folder: Path, marker: Path) -> dict[str, Target]:
    """Zip files of pictures: damaged bytes, and members that are not what they should be.

    Args:
        folder: for the sound files; empty.
        marker: a member that leads out of its folder is that file.
    """
    folder.mkdir(parents=True)
    picture = folder / "1.png"
    Image.fromarray(np.full((24, 32), 90, np.uint8)).save(picture)
    data = picture.read_bytes()
    away = ("../" * 20 + str(marker).lstrip("/"), str(marker), "..\\" * 9 + "x", "C:/x.png")
    odd = (*away, "", "a\nb.png", "con", "a/" * 60 + "x.png", "y" * 300, "A/1.png", "rescale.json")

    def damage(made: Path, rng: random.Random) -> Path:
        path = made / "x.zip"
        changed = rng.random() < 0.6
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
            warnings.simplefilter("ignore")
            for number in range(3):
                name = f"a/NCP_{number}_1_0001.png"
                if changed and rng.random() < 0.4:
                    name = rng.choice(odd)
                member = zipfile.ZipInfo(name or "x")
                member.compress_type = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
                if changed and rng.random() < 0.2:
                    member.external_attr = rng.choice((0o120777, 0o010644, 0o060644)) << 16
                inner = bytes(9_000_000) if changed and rng.random() < 0.1 else data
                archive.writestr(member, str(marker) if member.external_attr else inner)
        if not changed or rng.random() < 0.2:
            path.write_bytes(mutations.raw(path.read_bytes(), rng))
        return path

    return {"zip": Target(damage, _pixels)}


def _pixels(path: Path) -> None:
    tempfile.tempdir = str(path.parent)  # removed with it, though this process ends at once
    for scan in read_scans([path], rescale=(1.0, -1024.0)):
        for one in scan.slices:
            one.pixels(Window())


def volumes(folder: Path) -> dict[str, Target]:
    """MetaImage and NRRD: damaged bytes, and headers that lie."""
    folder.mkdir(parents=True)
    image = SimpleITK.GetImageFromArray(volume(3))
    image.SetSpacing((1.5, 2.0, 5.0))
    sound = []
    for name, packed in (("a.mha", False), ("b.mha", True), ("c.nrrd", False), ("d.nrrd", True)):
        SimpleITK.WriteImage(image, str(folder / name), useCompression=packed)
        sound.append(folder / name)

    def damage(made: Path, rng: random.Random) -> Path:
        source = rng.choice(sound)
        data = source.read_bytes()
        if rng.random() < 0.4:
            return written(made / source.name, mutations.raw(data, rng))
        mark = b"ElementDataFile = LOCAL\n" if source.suffix == ".mha" else b"\n\n"
        end = data.index(mark) + len(mark)
        lines = data[:end].decode().splitlines(keepends=True)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(lines))
            separator = next((one for one in (" = ", ": ") if one in lines[at]), None)
            if separator is None or rng.random() < 0.15:
                lines[at : at + 1] = [] if rng.random() < 0.5 else [lines[at]] * 2
                continue
            key, value = lines[at].rstrip("\n").split(separator, 1)
            words = value.split(" ")
            words[rng.randrange(len(words))] = rng.choice(_NUMBERS)
            lines[at] = f"{key}{separator}{' '.join(words)}\n"
            lines = lines or ["\n"]
        return written(made / source.name, "".join(lines).encode() + data[end:])

    return {"itk": Target(damage, _pixels)}


def tensorflow() -> dict[str, Target]:
    """The files of a TensorFlow checkpoint; none where the stand-in for one is not there."""
    if not _STANDIN.is_dir():
        return {}
    from tensorboard.compat.proto.meta_graph_pb2 import MetaGraphDef

    sound = MetaGraphDef()
    sound.ParseFromString((_STANDIN / "model.meta").read_bytes())
    sources = sorted(_STANDIN.glob("model.*"))

    def change(meta: Any, rng: random.Random) -> None:
        nodes = meta.graph_def.node
        node = rng.choice(nodes)
        way = rng.randrange(6)
        if way == 0:
            node.op = rng.choice(("PyFunc", "Enter", "Conv2D", "", "Identity", "ReadFile"))
        elif way == 1 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(nodes).name
        elif way == 2:
            nodes.remove(node)
        elif way == 3:
            node.name = rng.choice(nodes).name
        elif node.attr:
            value = node.attr[rng.choice(sorted(node.attr))]
            if value.shape.dim:
                size = rng.choice((-1, 0, 2**31, 2**62))
                rng.choice(value.shape.dim).size = size
            elif value.list.i:
                value.list.i[rng.randrange(len(value.list.i))] = rng.choice((-1, 0, 2**40))
            elif value.tensor.tensor_content:
                value.tensor.tensor_content = mutations.raw(value.tensor.tensor_content, rng)
            else:
                value.i = rng.choice((-1, 0, 2**40))

    def damage(made: Path, rng: random.Random) -> Path:
        hit = rng.choice(sources)
        for source in sources:
            data = source.read_bytes()
            if source == hit and source.suffix == ".meta" and rng.random() < 0.8:
                meta = MetaGraphDef()
                meta.CopyFrom(sound)
                for _ in range(rng.randint(1, 3)):
                    change(meta, rng)
                data = meta.SerializeToString()
            elif source == hit:
                data = mutations.raw(data, rng)
            written(made / source.name, data)
        return made / hit.name

    return {
        "tensorflow": Target(
            damage, lambda path: import_file(path.with_name("model.meta"), path.with_name("o.pth"))
        )
    }
