"""What is shipped: a wheel with every kernel, configuration file and page part, that works where it is installed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def shipped(folder: str, package: str, *kinds: str) -> set[str]:
    found = [path for kind in kinds for path in (ROOT / folder).rglob(f"*.{kind}")]
    return {f"{package}/{path.relative_to(ROOT / folder)}" for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_every_module_kernel_option_and_page_part(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    kernels = shipped("kernels", "gmmcnn/kernels", "cu", "cuh", "py")
    options = shipped("conf", "gmmcnn/conf", "yaml", "py")
    modules = shipped("gmmcnn", "gmmcnn", "py", "html", "css", "js", "typed")
    assert kernels
    assert len(options) > 15
    missing = (kernels | options | modules) - names
    assert not missing
    assert not any(name.startswith(("tests", "benchmarks", "conf/", "kernels/")) for name in names)


def test_the_installed_wheel_composes_its_configuration(wheel, tmp_path):
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import gmmcnn, pathlib;"
        f"assert pathlib.Path(gmmcnn.__file__).is_relative_to({str(target)!r}), gmmcnn.__file__;"
        "sys.argv = ['gmmcnn', '--cfg', 'job', 'model=lenet5']; from gmmcnn.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "name: lenet5" in done.stdout
