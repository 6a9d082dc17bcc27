"""Names that a user types: told apart, imported, checked, with a hint where they are nearly right."""

import math
import sys
from pathlib import Path

import pytest

from gmmcnn.errors import ConfigurationError
from gmmcnn.names import accepts, check_arguments, did_you_mean, import_dotted, is_dotted, unknown


@pytest.mark.parametrize(
    ("name", "dotted"), [("lenet5", False), ("a.b", True), ("a:B", True), ("a.b:C", True), ("", False)]
)
def test_a_dotted_name_has_a_module(name: str, dotted: bool) -> None:
    assert is_dotted(name) is dotted


@pytest.mark.parametrize(
    ("name", "hint"), [("k_maxx", "; did you mean k_max?"), ("kmin", "; did you mean k_min?"), ("zebra", ""), ("", "")]
)
def test_the_nearest_name_is_offered_where_one_is_near(name: str, hint: str) -> None:
    assert did_you_mean(name, iter(["k_min", "k_max", "n_init"])) == hint


def test_an_unknown_name_is_an_error_with_all_that_are_valid() -> None:
    error = unknown("model.name", "lenett", iter(["resnet8", "lenet5"]))
    assert isinstance(error, ConfigurationError)
    assert str(error) == (
        "model.name=lenett: expected lenet5, resnet8, or a dotted name package.module:Class; did you mean lenet5?"
    )


@pytest.mark.parametrize("name", ["math:sqrt", "math.sqrt"])
def test_either_spelling_imports(name: str) -> None:
    assert import_dotted("key", name) is math.sqrt


def test_modules_of_the_working_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_the_working_folder.py").write_text("class Net:\n    class Inner: pass\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert import_dotted("key", "of_the_working_folder:Net").__name__ == "Net"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere.at.all:Net",
            r"key=nowhere\.at\.all:Net: cannot import 'nowhere\.at\.all' \(No module",
        ),
        ("math:sqtr", r"'math' has no class or function 'sqtr'; did you mean sqrt\?"),
        ("math:pi", r"'math' has no class or function 'pi'"),
        (":Net", r"key=:Net: cannot import ''"),
    ],
)
def test_what_cannot_be_imported_or_called_is_named(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        import_dotted("key", name)


def test_whatever_a_users_module_raises_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "falls_over.py").write_text("raise ZeroDivisionError('on\\nimport')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"cannot import 'falls_over' \(on import\)"):
        import_dotted("key", "falls_over:Net")


def of_two(size: int, depth: int = 3) -> None:
    """Takes two arguments."""


def of_any(**options: object) -> None:
    """Takes any."""


def test_arguments_must_fit_the_signature() -> None:
    check_arguments("kwargs", of_two, {"size": 1})
    check_arguments("kwargs", of_two, {"size": 1, "depth": 2})
    check_arguments("kwargs", of_any, {"whatever": 1})
    check_arguments("kwargs", type, {"anything": 1})  # has no signature to look at
    with pytest.raises(ConfigurationError, match=r"kwargs: .*'width'; of_two accepts size, depth"):
        check_arguments("kwargs", of_two, {"size": 1, "width": 2})
    with pytest.raises(ConfigurationError, match=r"kwargs: missing .*'size'; of_two accepts size, depth"):
        check_arguments("kwargs", of_two, {})
    with pytest.raises(ConfigurationError, match="accepts none"):
        check_arguments("kwargs", lambda: None, {"size": 1})


def test_what_a_function_accepts() -> None:
    assert accepts(of_two, "depth")
    assert not accepts(of_two, "width")
    assert accepts(of_any, "width")
    assert not accepts(type, "width")
