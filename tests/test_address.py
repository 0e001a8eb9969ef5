import pytest

from mpelu.address import load_named
from mpelu.errors import UsageError


def test_names_in_a_file_and_in_a_module_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "named_here.py").write_text("def seven():\n    return 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert load_named("named_here:seven", kind="function")() == 7
    assert load_named(f"{tmp_path}/named_here.py:seven", kind="function")() == 7


def test_what_is_not_of_the_kind_is_refused_with_what_there_is(tmp_path):
    file = tmp_path / "numbers_here.py"
    file.write_text("ONE = 1\nTWO = 2\n_THREE = 3\nWORD = 'word'\n")

    def is_number(value: object) -> bool:
        return isinstance(value, int)

    assert load_named(f"{file}:TWO", kind="number", accepts=is_number) == 2
    with pytest.raises(UsageError, match=r"numbers_here.py has no number 'WORD'; it has ONE, TWO$"):
        load_named(f"{file}:WORD", kind="number", accepts=is_number)
