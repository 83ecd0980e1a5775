"""The command ``ctmasknet``: every script of tools/ and datasets/ as a sub-command.

    ctmasknet predict --input scan.nii.gz --output predicted --weights model.pth
    ctmasknet prepare_covidx_ct --help

is ``python tools/predict.py ...`` and ``python datasets/prepare_covidx_ct.py --help``, from any
folder. Nothing is imported before the sub-command is known, so that help comes at once.
"""

import ast
import difflib
import os
import runpy
import sys
from importlib import metadata
from pathlib import Path

_HERE = Path(__file__).resolve().parent
#: What has to run in a clone, whose files it reads.
_IN_A_CLONE = ("demo", "benchmark", "experiments", "gpu_check")


def _datasets() -> Path:
    """The scripts of datasets/: beside tools/ in a clone, a package of its own once installed."""
    return _HERE.parent / ("datasets" if _HERE.name == "tools" else "ctmasknet_datasets")


def commands() -> dict[str, Path]:
    """Name of each sub-command to its script, tools first."""
    folders = (_HERE, _datasets())
    return {
        path.stem: path
        for folder in folders
        for path in sorted(folder.glob("*.py"))
        if not path.stem.startswith("_")
    }


def _about(path: Path) -> str:
    """The first sentence of a script's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def _help(found: dict[str, Path]) -> str:
    width = max(map(len, found))
    lines = [f"  {name:<{width}}  {_about(path)}" for name, path in found.items()]
    return "\n".join(
        [
            "usage: ctmasknet [--help] [--version] COMMAND ...",
            "",
            "COVID-CT-Mask-Net: finds lesions in chest-CT slices and names the slices. For",
            "research, not for diagnosis.",
            "",
            "commands (ctmasknet COMMAND --help says more):",
            *lines,
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    found = commands()
    if not words or words[0] in ("-h", "--help"):
        try:
            print(_help(found), flush=True)
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if words else 2
    name = words[0]
    if name == "--version":
        print(f"ctmasknet {metadata.version('ctmasknet')}")
        return 0
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}?" if near else "ctmasknet --help lists the commands"
        print(f"error: {name}: no such command; {hint}", file=sys.stderr)
        return 2
    if name in _IN_A_CLONE and not (_HERE.parent / "setup.py").is_file():
        print(
            f"error: {name}: runs in a clone of the repository alone; see its README",
            file=sys.stderr,
        )
        return 2
    # Help and messages of a script show how it was called
    sys.argv = [f"ctmasknet {name}", *words[1:]]
    try:
        runpy.run_path(str(found[name]), run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
