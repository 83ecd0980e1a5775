"""The command ``ctmasknet``, and what a wheel holds."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.model_zoo import get_config_file


@pytest.fixture(scope="module")
def command(repository):
    spec = importlib.util.spec_from_file_location("command", repository / "tools" / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_is_a_sub_command(command, repository, capsys):
    scripts = [*repository.glob("tools/*.py"), *repository.glob("datasets/*.py")]
    names = {path.stem for path in scripts if not path.stem.startswith("_")}
    assert set(command.commands()) == names
    assert command.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in names)


def test_help_that_is_read_in_part_is_no_error(repository):
    tool = repository / "tools" / "__init__.py"
    shell = f"(sleep 0.5; {sys.executable} {tool} --help; echo $? >&2) | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.stderr == "0\n"


def test_help_imports_nothing_heavy(repository):
    code = (
        "import runpy, sys; sys.argv = ['ctmasknet', '--help']\n"
        f"try: runpy.run_path({str(repository / 'tools' / '__init__.py')!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'detectron2', 'ctmasknet'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_sub_command_is_the_script(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["ctmasknet"])
    words = ["--predictions", str(tmp_path / "none.csv"), "--output", str(tmp_path / "out")]
    assert command.main(["evaluate_predictions", *words]) == 2
    assert "none.csv: cannot read predictions" in capsys.readouterr().err


def test_another_word_is_one_line(command, capsys):
    assert command.main(["predit"]) == 2
    assert capsys.readouterr().err == "error: predit: no such command; did you mean predict?\n"


def test_configurations_by_name_from_any_folder(repository, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Path(get_config_file("demo/seg.yaml")) == repository / "configs" / "demo" / "seg.yaml"
    assert read_cfg("configs/cls.yaml").MODEL.META_ARCHITECTURE == "CTMaskNet"
    for name in ("nothing.yaml", "../setup.py", str(repository / "configs")):
        with pytest.raises(CTMaskNetError, match="no such configuration"):
            get_config_file(name)


def test_a_wheel_holds_scripts_and_configurations(repository, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("ctmasknet", "tools", "datasets", "configs"):
        shutil.copytree(
            repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(repository / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run([*pip, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
        (entry,) = (name for name in held if name.endswith("entry_points.txt"))
        assert "ctmasknet = ctmasknet_tools:main" in file.read(entry).decode()
    for folder, inside in (
        ("configs", "ctmasknet/model_zoo/configs"),
        ("tools", "ctmasknet_tools"),
        ("datasets", "ctmasknet_datasets"),
    ):
        files = [*(repository / folder).rglob("*.yaml"), *(repository / folder).rglob("*.py")]
        expected = {f"{inside}/{path.relative_to(repository / folder)}" for path in files}
        assert expected and expected <= held
    assert {"ctmasknet/report/assets/report.html.j2", "ctmasknet/paper/published.json"} <= held
