"""List files: every form of a line, and one clear error for every wrong one."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dsvid.data.manifest import Entry, format_list, open_split, read_list
from dsvid.errors import DataError


def write(folder: Path, text: str | bytes, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def entries(folder: Path, text: str | bytes) -> list[tuple[str, int, int, int, str]]:
    manifest = read_list(write(folder, text))
    found = [manifest[i] for i in range(len(manifest))]
    return [(str(Path(e.path).relative_to(folder)), e.label, e.start, e.total, e.kind) for e in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.mp4 3", ("a.mp4", 3, 0, -1, "video")),
        ("a.mp4  3", ("a.mp4", 3, 0, -1, "video")),
        ("a.mp4\t3", ("a.mp4", 3, 0, -1, "video")),
        ("a.mp4,3", ("a.mp4", 3, 0, -1, "video")),
        ("a.mp4, 3", ("a.mp4", 3, 0, -1, "video")),
        ("a.mp4 -1", ("a.mp4", -1, 0, -1, "video")),
        ('"my film.mp4" 3', ("my film.mp4", 3, 0, -1, "video")),
        ('"my, film.mp4",3', ("my, film.mp4", 3, 0, -1, "video")),
        ("'my film.mp4' 3", ("my film.mp4", 3, 0, -1, "video")),
        ('"a ""b"".mp4" 3', ('a "b".mp4', 3, 0, -1, "video")),
        ("my film.mp4,3", ("my film.mp4", 3, 0, -1, "video")),
        ("a,b.mp4 3", ("a,b.mp4", 3, 0, -1, "video")),
        ("it's.mp4 3", ("it's.mp4", 3, 0, -1, "video")),
        ("ä/ü.mp4 3", ("ä/ü.mp4", 3, 0, -1, "video")),
        ("a.mp4 0 -1", ("a.mp4", -1, 0, -1, "video")),
        ("A.MP4 30 60", ("A.MP4", -1, 30, 60, "video")),
        ("clip 0 -1", ("clip", -1, 0, -1, "video")),
        ("frames/a 120 3", ("frames/a", 3, -1, 120, "frames")),
        ("frames/a,120,3", ("frames/a", 3, -1, 120, "frames")),
        ("frames/a 3", ("frames/a", 3, -1, -1, "frames")),
    ],
)
def test_forms_of_a_line(tmp_path, line, expected):
    assert entries(tmp_path, line + "\n") == [expected]


@pytest.mark.parametrize(
    ("header", "line", "expected"),
    [
        ("path label", "a.mp4 3", ("a.mp4", 3, 0, -1, "video")),
        ("video,label", "a.mp4,3", ("a.mp4", 3, 0, -1, "video")),
        ("path start total", "frames/a 1 120", ("frames/a", -1, 1, 120, "frames")),
        ("folder total label", "frames/a 120 3", ("frames/a", 3, -1, 120, "frames")),
        ("path start total label", "a.mp4 30 60 3", ("a.mp4", 3, 30, 60, "video")),
    ],
)
def test_a_header_names_the_columns(tmp_path, header, line, expected):
    assert entries(tmp_path, f"{header}\n{line}\n") == [expected]


def test_byte_order_mark_crlf_comments_blank_lines_and_no_final_newline(tmp_path):
    text = b"\xef\xbb\xbf# my list\r\n\r\npath label\r\na.mp4 1\r\n  # x\r\nb.mp4 2"
    assert [(name, label) for name, label, *_ in entries(tmp_path, text)] == [("a.mp4", 1), ("b.mp4", 2)]
    assert read_list(write(tmp_path, text)).line_number(1) == 6


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("b.mp4", "label is missing"),
        ("b.mp4 cat", "'cat' where a whole number belongs"),
        ("b.mp4 1.5", "'1.5' where a whole number"),
        ("my film b.mp4 3", "needs quotes"),
        ("my film.mp4 3", "'film.mp4' where a whole number"),
        ('"b.mp4 3', "a quote that is not closed"),
        ("b.mp4 0,3", "blanks and commas both"),
        ("b.mp4 1 2 3 4", "5 fields"),
        (",3", "an empty path"),
        ("b.mp4 -2", "out of range"),
        ("b.mp4 0 0", "out of range"),
        ("b.mp4 99999999999", "out of range"),
        ("path label", "where a whole number"),
    ],
)
def test_a_line_that_is_not_understood_is_an_error_with_its_number(tmp_path, bad, said):
    with pytest.raises(DataError) as caught:
        read_list(write(tmp_path, f"a.mp4 0\n\n{bad}\n"))
    text = str(caught.value)
    assert "line 3" in text and said in text and "`videos/a.mp4 3`" in text and "Traceback" not in text


def test_a_header_with_other_columns_is_an_error(tmp_path):
    with pytest.raises(DataError, match="line 1: the header"):
        read_list(write(tmp_path, "label path\n3 a.mp4\n"))
    with pytest.raises(DataError, match="2 fields under a header of 3"):
        read_list(write(tmp_path, "path start total\na.mp4 3\n"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\r\n", "is empty"),
        (b"# nothing\n", "has no entries"),
        (b"path label\n", "has no entries"),
        (b"\x00\x00\x00 ftypisom\x00\x00", "is not text"),
        (b"a.mp4 1\nb\xff\xfe.mp4 2\n", "line 2: not UTF-8"),
    ],
)
def test_wrong_files(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        read_list(write(tmp_path, content))


def test_missing_file_folder_and_video_in_place_of_a_list(tmp_path, videos):
    with pytest.raises(DataError, match="nothing there"):
        read_list(tmp_path / "none.csv")
    with pytest.raises(DataError, match="is a folder, not a list file"):
        read_list(tmp_path)
    with pytest.raises(DataError, match="a video file"):
        read_list(videos / "v00.mp4")
    with pytest.raises(DataError, match=r"a folder without val\.csv"):
        open_split(str(tmp_path), "val")
    with pytest.raises(DataError, match=r"data\.val is empty"):
        open_split("", "val")
    with pytest.raises(DataError, match=r"data\.root"):
        read_list(write(tmp_path, "a.mp4 1\n"), root=str(tmp_path / "nowhere"))


def test_a_root_gives_the_list_of_the_split(tmp_path):
    write(tmp_path, "a.mp4 1\n", "train.csv")
    write(tmp_path, "b.mp4 2\n", "test.csv")
    assert open_split(str(tmp_path), "test")[0] == Entry(str(tmp_path / "b.mp4"), 2, 0, -1, "video")


def test_where_relative_paths_start(tmp_path, monkeypatch):
    lists, work, other = (tmp_path / name for name in ("lists", "work", "other"))
    for folder in (lists, work, other):
        folder.mkdir()
    path = write(lists, "a.mp4 1\n/abs/c.mp4 2\n")
    monkeypatch.chdir(work)
    assert read_list(path)[0].path == str(lists / "a.mp4")
    assert read_list(path, root=str(other))[0].path == str(other / "a.mp4")
    assert read_list(path, root=str(other))[1].path == "/abs/c.mp4"
    (work / "a.mp4").touch()
    assert read_list(path)[0].path == str(work / "a.mp4")
    (lists / "a.mp4").touch()
    assert read_list(path)[0].path == str(lists / "a.mp4")


def test_labels_are_checked_with_their_line(tmp_path):
    manifest = read_list(write(tmp_path, "# x\na.mp4 1\nb.mp4 8\nc.mp4 -1\n"))
    manifest.check_labels(8, limit=1)
    with pytest.raises(DataError, match=r"line 3: the label does not fit[\s\S]*label 8[\s\S]*num_classes=9"):
        manifest.check_labels(8)
    with pytest.raises(DataError, match=r"line 4[\s\S]*no label"):
        manifest.check_labels(9)


def test_a_list_is_known_by_its_sum_and_stays_small(tmp_path):
    lines = "".join(f"class_{i % 400}/video_{i:07}.mp4 {i % 400}\n" for i in range(20_000))
    manifest = read_list(write(tmp_path, lines))
    assert manifest.sha256 == read_list(write(tmp_path, lines, "copy.csv")).sha256
    assert manifest.sha256 != read_list(write(tmp_path, lines + "x.mp4 1\n", "other.csv")).sha256
    assert len(pickle.dumps(manifest)) < len(lines) + 26 * 20_000
    assert manifest[12_345].path.endswith("class_345/video_0012345.mp4") and manifest[12_345].label == 345


def test_bad_lines_can_be_heard_of_instead_of_ending_the_reading(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path label\na.mp4 1\nb.mp4\nc.mp4 x\n\nd.mp4 2\n")
    heard = []
    manifest = read_list(path, "", lambda line, text, error: heard.append((line, text, str(error).split("\n")[0])))
    assert [(manifest.line_number(number), manifest.labels[number]) for number in range(len(manifest))] == [
        (2, 1),
        (6, 2),
    ]
    assert [(line, text) for line, text, _ in heard] == [(3, "b.mp4"), (4, "c.mp4 x")]
    assert "line 4: 'x' where a whole number belongs" in heard[1][2]


def test_what_is_written_is_read_as_the_same_entries(tmp_path):
    plain = [
        Entry("a b.mp4", 3, 0, -1, "video"),
        Entry('q"u,o.mp4', -1, 0, -1, "video"),
        Entry("#x", 0, -1, -1, "frames"),
    ]
    ranges = [Entry("a.mp4", 3, 5, 20, "video"), Entry("b.mp4", -1, 0, -1, "video"), Entry("f 1", 2, 7, 9, "frames")]
    for entries in (plain, ranges):
        path = tmp_path / "list.csv"
        path.write_text(format_list(entries))
        manifest = read_list(path)
        assert [manifest.listed_path(number) for number in range(len(manifest))] == [entry.path for entry in entries]
        assert [(each.label, each.start, each.total, each.kind) for each in map(manifest.__getitem__, range(3))] == [
            (each.label, each.start, each.total, each.kind) for each in entries
        ]
