"""Pairs files: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyglue.base.errors import InputError
from keyglue.ui.pairs import read_pairs


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "pairs.txt"
    path.write_text(text, encoding=encoding)
    return path


def test_comments_quotes_blank_lines_and_any_white_space(tmp_path: Path) -> None:
    text = "# header\n\na.png b.png\n  'with space.png'\t\"it's.png\"  # trailing\r\nc#1.png d.png\n'c#1.png' d.png\n"
    with pytest.raises(InputError, match="line 5: expected two paths, found 1"):
        read_pairs(write(tmp_path, text))
    pairs = read_pairs(write(tmp_path, text.replace("c#1.png d.png\n'", "'")))
    assert [(str(pair.image0), str(pair.image1)) for pair in pairs] == [
        ("a.png", "b.png"),
        ("with space.png", "it's.png"),
        ("c#1.png", "d.png"),
    ]


def test_paths_are_looked_for_beside_the_file_then_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "near.png").touch()
    (tmp_path / "here.png").touch()
    monkeypatch.chdir(tmp_path)
    (pair,) = read_pairs(write(lists, f"near.png here.png\n{''}"))
    assert pair.image0 == lists / "near.png"
    assert pair.image1 == Path("here.png")
    (pair,) = read_pairs(write(lists, f"{lists}/near.png ../here.png"))
    assert pair.image0 == lists / "near.png"
    assert pair.image1.samefile(tmp_path / "here.png")


def test_a_pair_listed_twice_is_taken_once_and_both_directions_are_two(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path, "a.png b.png\na.png b.png\nb.png a.png\n"))
    assert [pair.name for pair in pairs] == ["a.png__b.png", "b.png__a.png"]


def test_names_keep_folders_apart(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path, "x/a.png y/a.png\n./x/a.png z\\a.png\n/data/a.png C:\\a.png"))
    assert [pair.name for pair in pairs] == ["x_a.png__y_a.png", "x_a.png__z_a.png", "data_a.png__C_a.png"]


def test_two_pairs_with_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 2.*x_a\.png__b\.png"):
        read_pairs(write(tmp_path, "x/a.png b.png\nx_a.png b.png\n"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a.png\n", "line 1: expected two paths, found 1"), ("a b\na b c\n", "line 2.*found 3"), ("'a b\n", "line 1: No")],
)
def test_broken_lines_are_named(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_pairs(write(tmp_path, text))


def test_a_byte_order_mark_is_no_part_of_the_first_path(tmp_path: Path) -> None:
    (pair,) = read_pairs(write(tmp_path, "a.png b.png", encoding="utf-8-sig"))
    assert str(pair.image0) == "a.png"


def test_a_binary_file_or_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "pairs.txt", tmp_path):
        with pytest.raises(InputError, match="cannot be read as a list of pairs"):
            read_pairs(path)
