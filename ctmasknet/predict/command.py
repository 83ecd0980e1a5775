"""What ``tools/predict.py`` does with its arguments: from them to a run, and what is told of it."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from ctmasknet.config import is_classifier
from ctmasknet.ct.arrays import parse_axes
from ctmasknet.ct.lungs.network import require_lungmask
from ctmasknet.ct.scan import GREY, parse_rescale
from ctmasknet.data.bad_slices import REPORT, BadSlice, BadSlices
from ctmasknet.draw.lesions import check_score_threshold
from ctmasknet.engine.checkpoint import CALIBRATION
from ctmasknet.engine.record import environment
from ctmasknet.engine.runs.start import start_logs
from ctmasknet.engine.setup import inference_cfg
from ctmasknet.engine.testing import check_finds_lesions, ensemble_members
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.lesions.burden_files import burden_text, measure_burden
from ctmasknet.files import check_writable, lack_of_room
from ctmasknet.modeling.averaged import averaging_text
from ctmasknet.modeling.fast.inference import check_int8, looks_text, second_looks
from ctmasknet.predict.dicom_seg import require_highdicom
from ctmasknet.predict.inputs import list_units
from ctmasknet.predict.manifest import check_output_apart, settings_of
from ctmasknet.predict.outputs import MAX_SHOWN, Summary
from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.run import OpenShard, PredictionRun

#: Of a slice of 512 x 512 px with lesions.
_MOST_BYTES = {"overlays": 6e5, "dicom-seg": 2e5, "nifti": 2e4}


def predict_from_command_line(args: argparse.Namespace) -> Summary | None:
    """Predict every scan of the inputs into a folder; called in every process of the run.

    Inputs are listed at once and read a folder at a time (see :mod:`ctmasknet.predict.inputs`), so
    that memory does not grow with their number but by their names and, for the patients, by the
    logits. A shard's slices are predicted, then its files are written.

    Args:
        args: ``config_file``, ``opts``, ``weights`` (see
            :func:`ctmasknet.engine.setup.inference_cfg`; several files are an ensemble, whose
            boxes and lesions are the first's), ``input`` (files and folders), ``output``
            (folder), ``lesions``, ``masks`` (kinds of :data:`ctmasknet.predict.run.MASKS`),
            ``overlays``, ``burden`` (of :data:`ctmasknet.ct.lungs.masks.LUNG_WAYS`, or None),
            ``score_threshold`` (0..1), ``pooling``, ``top_k``, ``batch_size`` (None
            for the usual), ``bad`` (``error`` or ``skip``), ``max_bad_share`` (0..1),
            ``lesion_weights`` and ``lesion_config_file`` (of a lesion detector beside a classifier;
            "" for none, for what the weights state), ``rescale`` and ``axes`` (text; None for
            none), ``resume``, ``overwrite``, ``num_gpus``, ``words`` (the command line,
            for the record).

    Returns:
        counts, in the main process; None in others.

    Raises:
        CTMaskNetError: bad arguments, weights or inputs; a folder that cannot be written or is
            another run's; more bad slices than allowed, once everything is written.
    """
    start_logs()
    cfg, spec = inference_cfg(args.config_file, args.opts, args.weights, averages=True)
    members = ensemble_members(cfg)
    bad = BadSlices(
        {}, mode=args.bad, max_share=args.max_bad_share, keys=("`bad`", "`max_bad_share`")
    )
    check_score_threshold(args.score_threshold)
    rescale = parse_rescale(args.rescale) if args.rescale is not None else None
    if args.axes is not None:
        parse_axes(args.axes)
    masks = tuple(sorted(set(args.masks)))
    asked_for = args.lesions or masks or args.overlays or args.lesion_weights or args.burden
    lesions = bool(asked_for or not is_classifier(cfg))
    lesion_cfg = _lesion_cfg(args, cfg)
    if lesions and lesion_cfg is None:
        check_finds_lesions(cfg)
    if "dicom-seg" in masks:
        require_highdicom()
    if args.burden == "network":
        require_lungmask()
    check_output_apart(args.output, args.input)
    if comm.is_main_process():
        check_writable(args.output, folder=True)
    units, inputs_sha256 = list_units(args.input, skip_bad=bad.skip)
    if not units:
        raise CTMaskNetError(f"{args.input[0]}: no file in it; give a folder of CT slices")
    if comm.is_main_process():
        kinds = [*masks, *["overlays"] * args.overlays]
        needed = sum(unit.weight for unit in units) * sum(_MOST_BYTES[kind] for kind in kinds)
        if lack := lack_of_room(args.output, needed, f"{', '.join(kinds)} of all slices"):
            logging.getLogger(__name__).warning("%s; slices without a lesion need less", lack)
    options = {
        "lesions": lesions,
        "masks": list(masks),
        "overlays": args.overlays,
        "score_threshold": args.score_threshold,
        "pooling": args.pooling,
        "top_k": args.top_k,
        "batch_size": args.batch_size or cfg.TEST.IMS_PER_BATCH,
    }
    if rescale is not None:
        options["rescale"] = rescale if rescale == GREY else list(rescale)
    if args.axes is not None:
        options["axes"] = args.axes
    if lesion_cfg is not None:
        its = settings_of(lesion_cfg, "", {})
        options["lesion_weights"] = [its["weights"], its["configuration"]]
    if looks := averaging_text(cfg):
        options["averaged"] = looks
    if members:
        its = [settings_of(one, "", {}) for one in members]
        options["ensemble"] = [[one["weights"], one["configuration"]] for one in its]
    if told := [its for its in map(check_int8, (cfg, *members)) if its]:
        options["int8"] = told
    place = {"rank": comm.get_rank(), "world": comm.get_world_size()}
    settings = settings_of(cfg, inputs_sha256, options)
    run = PredictionRun(args.output, settings, units, bad, **place)
    summary = run.open(resume=args.resume, overwrite=args.overwrite)
    if comm.all_gather(summary is not None)[0]:
        if summary is not None:
            print("finished already:", summary_text(summary, run.output))
            if args.burden:
                _tell_burden(args, run.output, summary.cautions)
            _check_share(summary, bad.max_share, run.output)
        return summary
    predictor = CTPredictor(
        cfg,
        calibration=spec.get(CALIBRATION),
        pooling=args.pooling,
        top_k=args.top_k,
        batch_size=args.batch_size,
        lesions=lesions,
        lesion_predictor=None if lesion_cfg is None else CTPredictor(lesion_cfg),
    )
    predictor.refuse_crop()
    if (masks or args.burden) and not predictor.has_mask_head:
        kind = "masks" if masks else "burden"
        raise CTMaskNetError(
            f"`{kind}`: these weights have no mask head, so lesions are boxes alone; leave out "
            "it, or give the lesion detector's configuration and weights"
        )
    with run:
        for (shard, scan), batches in predictor.batches(run.unfinished(), skip_bad=True):
            opened = OpenShard(run, predictor, shard, scan)
            for batch in batches:
                if isinstance(batch, BadSlice):
                    run.refuse(batch.file, batch.reason)
                    opened.add(batch, None)
                    continue
                outputs = predictor.predict([one.item for one in batch])
                for one, output in zip(batch, outputs, strict=True):
                    found = predictor.result(one.source, output, one.seen)
                    opened.add(found, one.pixels)
            opened.write()
        asked = {
            "config_file": str(args.config_file) or None,
            "overrides": [str(word) for word in args.opts],
            "command": shlex.join(["python", "tools/predict.py", *args.words]),
            "inputs": [str(path) for path in args.input],
            "weights": cfg.MODEL.WEIGHTS,
        }
        if members:
            asked["weights"] = [cfg.MODEL.WEIGHTS, *cfg.TEST.ENSEMBLE]
        if looks:
            asked["averaged"] = looks
        if lesion_cfg is not None:
            asked["lesion_weights"] = lesion_cfg.MODEL.WEIGHTS
        counts = second_looks(predictor.model, *(one.model for one in predictor.members))
        if counts[0]:
            asked["second_looks"] = dict(zip(("looks", "again"), counts, strict=True))
        summary = run.finish(predictor, asked, environment(cfg, getattr(args, "num_gpus", 1)))
    if summary is not None:
        logged = dataclasses.replace(summary, cautions=[])  # those, at the start
        print(summary_text(logged, run.output, run.progress.rate))
        if counts[0]:
            print(looks_text(counts))
        if args.burden:
            _tell_burden(args, run.output, summary.cautions)
        _check_share(summary, bad.max_share, run.output)
    return summary


def _tell_burden(args: argparse.Namespace, output: Path, told: Sequence[str]) -> None:
    """Write the burden of a finished run's lesions; ``told``: cautions that were told before."""
    if not (output / "lesions.json").exists():
        raise CTMaskNetError(
            f"`burden`: {output} was predicted without lesions; predict it anew with `overwrite`"
        )
    how = {"score_threshold": args.score_threshold, "rescale": args.rescale}
    how["axes"] = args.axes
    how |= {"lesions": output / "lesions.json", "scans": args.input, "lungs": args.burden}
    try:
        found = measure_burden(output / "burden", **how)
    except CTMaskNetError as error:
        raise CTMaskNetError(
            f"`burden`: the prediction is written, but has no burden: {error}"
        ) from error
    more = [caution for caution in found["cautions"] if caution not in told]
    print(burden_text({**found, "cautions": more}))


def _lesion_cfg(args: argparse.Namespace, cfg: CfgNode) -> CfgNode | None:
    """The configuration of the detector that finds a classifier's lesions; None without one.

    Raises:
        CTMaskNetError: see :func:`ctmasknet.engine.setup.inference_cfg`; no classifier beside it.
    """
    if not args.lesion_weights:
        if args.lesion_config_file:
            raise CTMaskNetError(
                "`lesion_config_file`: has no effect without `lesion_weights`; give them, or leave "
                "it out"
            )
        return None
    if not is_classifier(cfg):
        raise CTMaskNetError(
            f"`lesion_weights`: {cfg.MODEL.WEIGHTS} is a lesion detector already; leave "
            "`lesion_weights` out, or give a classifier beside it"
        )
    overrides = ["MODEL.DEVICE", cfg.MODEL.DEVICE]
    if cfg.TEST.AUG.ENABLED:  # of which a classifier has flips alone
        overrides += ["TEST.AUG.ENABLED", True]
    weights = args.lesion_weights
    try:
        return inference_cfg(args.lesion_config_file, overrides, weights, averages=True)[0]
    except CTMaskNetError as error:
        raise CTMaskNetError(f"`lesion_weights`: {error}") from error


def summary_text(summary: Summary, output: Path, rate: float | None = None) -> str:
    """The counts in a few lines."""
    others = " in the main process" if comm.get_world_size() > 1 else ""
    pace = f", {rate:.1f} slices/s{others}" if rate else ""
    counts = {"slice": summary.slices, "scan": summary.scans, "known patient": summary.patients}
    slices, scans, patients = (f"{n} {what}{'s' * (n != 1)}" for what, n in counts.items())
    lines = [f"{slices} of {scans}, {patients}{pace}"]
    if summary.averaged:
        lines.append(f"averaged: {summary.averaged}")
    for level, counts in summary.classes.items():
        if not any(counts.values()):
            continue
        pooled = f" (pooling: {summary.pooling})" if level != "slices" else ""
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(f"{level}{pooled}: {found}")
    if summary.slices_with:
        found = ", ".join(f"{name} {count}" for name, count in summary.slices_with.items())
        lines.append(f"slices with: {found}; {summary.lesions} candidates of any score")
    if summary.skipped:
        share = f"{100 * summary.bad_share:.2f} %"
        lines.append(f"{summary.skipped} slices or files ({share}) could not be read, see {REPORT}")
    if summary.left_out:
        lines.append(f"{summary.left_out} files are no axial CT and were left out, see the log")
    lines += [f"reconstruction: {chosen}" for chosen in summary.reconstructions[:MAX_SHOWN]]
    if more := summary.reconstructions[MAX_SHOWN:]:
        lines.append(f"reconstruction: and of {len(more)} more studies, see predictions.jsonl")
    if summary.problems:
        lines.append(f"{summary.problems} problems of scans, see predictions.jsonl")
        lines += [f"problem: {problem}" for problem in summary.shown_problems]
    lines += [f"caution: {caution}" for caution in summary.cautions]
    return "\n".join([*lines, f"in {output}"])


def _check_share(summary: Summary, max_bad_share: float, output: Path) -> None:
    if summary.bad_share > max_bad_share:
        raise CTMaskNetError(
            f"{output / REPORT}: {summary.skipped} of {summary.skipped + summary.slices} slices "
            f"and files could not be read ({100 * summary.bad_share:.2f} %), more than "
            f"`max_bad_share` {max_bad_share:g} allows; the others are predicted"
        )
