"""The table of contents: one list of names for those who run the package and for those who read it."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import gmmcnn

SOURCE = ast.parse(Path(gmmcnn.__file__).read_text())


def read_by_tools() -> dict[str, str]:
    """Public name → module, as type checkers and editors find it in the imports that never run."""
    [block] = [node for node in SOURCE.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    for node in imports:
        for name in node.names:
            assert name.asname == name.name, f"{name.name}: only a name imported as itself is public"
    return {name.name: node.module.removeprefix("gmmcnn.") for node in imports for name in node.names}


def test_tools_and_the_interpreter_find_the_same_names_in_the_same_modules():
    assert read_by_tools() == gmmcnn._HOMES


def test_names_are_in_order_and_all_that_there_is():
    assert list(gmmcnn._HOMES) == sorted(gmmcnn._HOMES)
    assert gmmcnn.__all__ == dir(gmmcnn) == list(gmmcnn._HOMES)


@pytest.mark.parametrize("name", gmmcnn.__all__)
def test_a_name_is_the_object_of_its_module(name):
    found = getattr(gmmcnn, name)
    assert found.__name__ == name
    assert found.__module__ == f"gmmcnn.{gmmcnn._HOMES[name]}"
    assert found.__doc__
    assert vars(gmmcnn)[name] is found  # looked up once


def test_a_name_that_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'gmmcnn' has no attribute 'analyse'"):
        _ = gmmcnn.analyse


def test_importing_gmmcnn_loads_nothing_heavy():
    code = (
        "import sys, gmmcnn; heavy = 'torch numba numpy pandas zarr sklearn scipy plotly cupy cuml hydra'.split();"
        "assert not set(heavy) & set(sys.modules), sorted(set(heavy) & set(sys.modules));"
        "gmmcnn.GmmcnnError; assert 'torch' not in sys.modules and 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_folder_hides_a_public_name():
    """``import gmmcnn.pca`` would put a module in the place of the function of that name."""
    modules = {path.stem for path in Path(gmmcnn.__file__).parent.iterdir()}
    assert not modules & set(gmmcnn.__all__)


def test_the_version_is_that_of_the_installed_package():
    assert gmmcnn.__version__ == version("gmmcnn")
