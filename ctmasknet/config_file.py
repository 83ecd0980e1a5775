"""A configuration from its file: Detectron2's defaults and ours, the YAML file, the overrides."""

from __future__ import annotations

import functools
import io
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from ctmasknet.config import add_ctmasknet_config
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import plain_file
from ctmasknet.key_checks import check_keys
from ctmasknet.key_checks.choices import CHOICES
from ctmasknet.model_zoo import get_config_file
from ctmasknet.registration import import_registrations, refuse_import

#: Characters of a configuration with its bases, and values in it when what is repeated is written
#: out; how deep brackets lie in each other; files, a base counted each time that it is named.
_MAX_YAML, _DEEPEST_YAML, _MAX_FILES = 2**16, 100, 32


def read_cfg(config_file: str | os.PathLike, overrides: Sequence[Any] = ()) -> CfgNode:
    """Detectron2's defaults, ctmasknet's keys, the file, then ``KEY VALUE`` overrides.

    Raises:
        CTMaskNetError: missing or malformed file, unknown key, value of another type, or one that
            :func:`ctmasknet.key_checks.check_keys` refuses.
    """
    if not config_file:
        raise CTMaskNetError(
            "no configuration: add `config_file` configs/seg.yaml or configs/cls.yaml"
        )
    cfg = from_file(config_file)
    override(cfg, overrides)
    check_keys(cfg)
    return cfg


def device_of(config_file: str | os.PathLike, overrides: Sequence[Any] = ()) -> str:
    """``MODEL.DEVICE`` as an override says, or a file, or else the defaults."""
    if config_file:
        return read_cfg(config_file, overrides).MODEL.DEVICE
    given = dict(zip(overrides[::2], overrides[1::2], strict=False))
    return str(given.get("MODEL.DEVICE", from_file("").MODEL.DEVICE))


def from_file(config_file: str | os.PathLike) -> CfgNode:
    """The defaults and the file, unchecked; the defaults alone without one.

    Raises:
        CTMaskNetError: missing or malformed file, unknown key, value of another type.
    """
    config_file = os.fspath(config_file)
    cfg = get_cfg()
    add_ctmasknet_config(cfg)
    if not config_file:
        return cfg
    if not os.path.isfile(config_file):
        # One of those that come with the package, from any folder
        if os.path.exists(config_file):
            raise CTMaskNetError(
                f"{config_file}: a folder, device or pipe; give a YAML file such as "
                "configs/cls.yaml"
            )
        config_file = get_config_file(config_file)
    try:
        cfg.merge_from_other_cfg(CfgNode(_typed(_loaded(config_file), cfg)))
    except (AssertionError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CTMaskNetError(
            f"{config_file}: {one_line(error)}; correct the key or its value"
        ) from error
    except CTMaskNetError as error:
        raise CTMaskNetError(f"{config_file}: {error}") from None
    refuse_import(cfg.DATASETS.IMPORT, config_file)
    return cfg


def override(cfg: CfgNode, overrides: Sequence[Any]) -> None:
    """Put ``KEY VALUE`` pairs into ``cfg``, in place.

    A user's registration module (``DATASETS.IMPORT``) is imported, so that what it registers can be
    named, and the key is empty again: what is saved of a configuration names none.

    Raises:
        CTMaskNetError: unknown key, value of another type, a key without a value, a module that
            cannot be imported.
    """
    try:
        words = list(overrides)
        words[1::2] = [
            _float(value, _at(cfg, key))
            for key, value in zip(words[::2], words[1::2], strict=False)
        ]
        cfg.merge_from_list(words)
    except (AssertionError, KeyError, ValueError) as error:
        raise CTMaskNetError(
            f"override: {one_line(error)}; overrides are pairs KEY VALUE of known keys"
        ) from error
    given = {str(key) for key in words[::2]}
    if "MODEL.LESION_CLASSES" in given and "MODEL.ROI_HEADS.NUM_CLASSES" not in given:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(cfg.MODEL.LESION_CLASSES) or 1
    import_registrations(words)
    cfg.DATASETS.IMPORT = ""


def parse_yaml(text: str) -> Any:
    """What YAML from outside says; it makes plain values alone.

    Raises:
        ValueError: it is larger than any configuration, or so by the repeats in it, or nested too
            deeply.
        yaml.YAMLError: it is no YAML.
    """
    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (AttributeError, KeyError, TypeError) as error:  # of a value that is not of its tag
        raise ValueError(f"a value unlike its tag ({one_line(error)})") from None


def check_yaml(text: str) -> None:
    """Refuse what would take long: YAML is read by some 100 kB a second, and a value that is named
    (``&a``) and repeated (``*a``) may repeat others.

    Raises:
        ValueError, yaml.YAMLError: see :func:`parse_yaml`.
    """
    if len(text) > _MAX_YAML:
        raise ValueError(f"larger than any configuration, which are below {_MAX_YAML >> 10} KiB")
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text))
    if max(itertools.accumulate(steps), default=0) > _DEEPEST_YAML:
        raise ValueError("nested too deeply")
    if "&" not in text or "*" not in text:
        return
    sizes: dict[int, float] = {}

    def size(node: yaml.Node | None) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # of a value within itself
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = (part for one in inner for part in (one if isinstance(one, tuple) else (one,)))
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    try:
        if size(yaml.compose(text, yaml.SafeLoader)) > _MAX_YAML:
            raise ValueError("its repeated values (*) would make it larger than any configuration")
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _Loading(CfgNode):
    """Opens a configuration and its bases, within bounds; ``left`` of a class of its own each time:
    files, characters."""

    left: list[int]

    @classmethod
    def _open_cfg(cls, filename: str):
        cls.left[0] -= 1
        if cls.left[0] < 0:
            raise CTMaskNetError(
                f"its _BASE_ leads back to itself, or to more than {_MAX_FILES} files; correct it"
            )
        text = plain_file(PathManager.get_local_path(filename)).read_text(encoding="utf-8")
        check_yaml(text)
        cls.left[1] -= len(text)
        if cls.left[1] < 0:
            raise ValueError(f"with its _BASE_ larger than {_MAX_YAML >> 10} KiB")
        return io.StringIO(text)


def _loaded(config_file: str) -> dict[str, Any]:
    """The content of a YAML file over that of its ``_BASE_``."""
    if config_file.endswith(".py"):
        raise CTMaskNetError(
            "a Python (LazyConfig) file; give a YAML file such as configs/cls.yaml"
        )
    reader = type("_OneLoading", (_Loading,), {"left": [_MAX_FILES, _MAX_YAML]})
    try:
        loaded = reader.load_yaml_with_base(config_file, allow_unsafe=False)
    except RecursionError:
        raise CTMaskNetError("it is nested too deep; correct the file") from None
    except (AttributeError, TypeError) as error:
        # Detectron2 takes for granted that file, sections and base are what they should be.
        raise CTMaskNetError(
            f"not a mapping of keys with a file's name as its _BASE_ ({one_line(error)}); write "
            "KEY: VALUE lines as in configs/cls.yaml"
        ) from error
    if not isinstance(loaded, dict):
        raise CTMaskNetError("not a mapping of keys; write KEY: VALUE lines as in configs/cls.yaml")
    return loaded


def _typed(loaded: Mapping[str, Any], cfg: Any, above: str = "") -> dict[str, Any]:
    """What a file holds, with whole numbers as float where the key is one.

    Raises:
        CTMaskNetError: a boolean where the key takes a word, a key that is no text.
    """
    result = {}
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise CTMaskNetError(f"{above}{name} is no key (a key is text); correct it")
        key, usual = f"{above}{name}", cfg.get(name) if isinstance(cfg, CfgNode) else None
        if isinstance(value, bool) and isinstance(usual, str):
            raise CTMaskNetError(
                f"{key} is {value}, as YAML reads on, off, yes and no; choose one of "
                f"{', '.join(CHOICES.get(key, ('a word in quotes',)))}"
            )
        nested = isinstance(value, Mapping)
        result[name] = _typed(value, usual, f"{key}.") if nested else _float(value, usual)
    return result


def _float(value: Any, usual: Any) -> Any:
    if isinstance(usual, bool) and isinstance(value, str):
        return {"on": True, "off": False}.get(value.lower(), value)
    if isinstance(usual, float) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            return value
    return value


def _at(cfg: CfgNode, key: Any) -> Any:
    """The value of a key; None for an unknown one."""
    return functools.reduce(
        lambda node, name: node.get(name) if isinstance(node, CfgNode) else None,
        str(key).split("."),
        cfg,
    )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
