"""Rows come back as they were written, or not at all."""

import json
import re
import runpy
import struct
from pathlib import Path

import numpy as np
import pytest

from speechlm.tokens.rows import INDEX, RowFile, RowFolder, index_of, read_index, row_writer, write_index
from tests.row_corpus import PAD, ROW_LEN, VOCAB, write_file, write_folder


def test_rows_come_back_as_they_were_written(tmp_path: Path):
    file = RowFile(write_file(tmp_path / "a.rows", 3, 40), verify=True)
    assert len(file) == 3 and file.row_len == ROW_LEN
    for i in range(3):
        row = file.row(i)
        assert row.ids.tolist() == [40 + i] * 13 + [PAD] * 3
        assert row.document_ends.tolist() == [5, 13] and row.loss_spans.tolist() == [[1, 5], [9, 13]]
        file.will_need(i)
    assert file.header["vocab_hash"] == VOCAB.hash and file.header["source"] == tmp_path.name


@pytest.mark.parametrize(("size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32), (168_737, np.uint32)])
def test_ids_take_the_least_room_and_the_last_one_fits(tmp_path: Path, size: int, dtype: type):
    with row_writer(tmp_path / "a.rows", 4, "hash", size, {}) as writer:
        writer.write(np.array([0, size - 1, 1, 2]), np.array([4]), np.array([[1, 4]]))
    row = RowFile(tmp_path / "a.rows").row(0)
    assert row.ids.dtype == dtype and row.ids.tolist() == [0, size - 1, 1, 2]


@pytest.mark.parametrize("bad", [-1, 10])
def test_an_id_outside_the_vocabulary_is_never_written(tmp_path: Path, bad: int):
    with (
        pytest.raises(ValueError, match=f"id {bad} is outside the vocabulary of 10 ids"),
        row_writer(tmp_path / "a.rows", 2, "hash", 10, {}) as writer,
    ):
        writer.write(np.array([0, bad]), np.array([2]), np.zeros((0, 2)))
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_bit_is_found_when_all_is_verified(tmp_path: Path):
    path = write_file(tmp_path / "a.rows", 2)
    good = path.read_bytes()
    sections = RowFile(path).header["sections"]
    covered = [
        (s["offset"], s["offset"] + int(np.prod(s["shape"])) * np.dtype(s["dtype"]).itemsize) for s in sections.values()
    ]
    header = len(good) - len(json.dumps(RowFile(path).header)) - 20
    places = [byte for begin, end in [*covered, (0, 8), (header, len(good))] for byte in range(begin, end)]
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is cut short, damaged or no file of rows"):
            RowFile(path, verify=True)
    assert len(places) > 500


def test_a_flipped_bit_of_a_row_is_found_when_the_row_is_read_and_other_rows_are_not_held_up(tmp_path: Path):
    path = write_file(tmp_path / "a.rows", 3)
    sections = RowFile(path).header["sections"]
    for name, width in [("ids", ROW_LEN * 2), ("document_ends", 8), ("loss_spans", 16), ("row_sums", 8)]:
        good = path.read_bytes()
        for byte in range(sections[name]["offset"] + width, sections[name]["offset"] + 2 * width):
            damaged = bytearray(good)
            damaged[byte] ^= 4
            path.write_bytes(damaged)
            file = RowFile(path)
            file.row(0), file.row(2)
            with pytest.raises(ValueError, match=r"a\.rows .* row 1 \(byte 96\) is not what was written"):
                file.row(1)
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["documents_until", "spans_until"])
def test_a_flipped_bit_in_where_a_row_begins_is_found_when_it_is_read(tmp_path: Path, name: str):
    path = write_file(tmp_path / "a.rows", 3)
    good, section = path.read_bytes(), RowFile(path).header["sections"][name]
    for byte in range(section["offset"], section["offset"] + 24):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[byte] ^= 1 << bit
            path.write_bytes(damaged)
            file = RowFile(path)
            with pytest.raises(ValueError, match="is not what was written"):
                [file.row(i) for i in range(3)]


@pytest.mark.parametrize("keep", [0, 7, 64, 100, -1, -8, -20, -500])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int):
    path = write_file(tmp_path / "a.rows", 3)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.rows is cut short, damaged"):
        RowFile(path)


def test_what_is_no_file_of_rows_is_refused(tmp_path: Path):
    path = tmp_path / "a.rows"
    path.write_bytes(b"<html>" * 100)
    with pytest.raises(ValueError, match="no file of rows"):
        RowFile(path)


def test_a_file_of_another_version_is_refused_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("speechlm.tokens.rows.VERSION", 2)
    path = write_file(tmp_path / "a.rows", 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is of version 2, this program reads version 1"):
        RowFile(path)


def test_a_killed_writer_leaves_nothing_that_is_taken_for_rows(tmp_path: Path):
    def killed() -> None:
        with row_writer(tmp_path / "a.rows", 2, "hash", 10, {}) as writer:
            writer.write(np.array([0, 1]), np.array([2]), np.zeros((0, 2)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_one_sequence_of_rows(tmp_path: Path):
    folder = RowFolder(write_folder(tmp_path, [3, 1, 4]), verify=True)
    assert len(folder) == 8 and [int(folder.row(i).ids[0]) for i in range(8)] == list(range(8))
    assert folder.index["counts"] == {"rows": 8, "skipped": {"empty": 3}}
    assert len(RowFolder(tmp_path / "00002.rows")) == 4


def test_a_folder_that_is_not_finished_is_refused(tmp_path: Path):
    write_folder(tmp_path, [1])
    (tmp_path / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no index\.json, packing has not finished"):
        RowFolder(tmp_path)


def test_a_missing_a_short_and_an_exchanged_file_are_named(tmp_path: Path):
    write_folder(tmp_path, [2, 2])
    path = tmp_path / "00001.rows"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(path))} has {len(good) - 1} bytes, {len(good)} were written"
    ):
        RowFolder(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.rows is missing"):
        RowFolder(tmp_path)
    path.write_bytes((tmp_path / "00000.rows").read_bytes())
    with pytest.raises(ValueError, match=r"00001\.rows is not the file that .*index\.json was made of"):
        RowFolder(tmp_path).row(3)


def test_an_index_that_was_changed_or_names_a_file_twice_is_refused(tmp_path: Path):
    write_folder(tmp_path, [2, 2])
    path = tmp_path / INDEX
    good = path.read_text()
    for place in range(0, len(good), 7):
        damaged = bytearray(good.encode())
        damaged[place] ^= 1
        path.write_bytes(damaged)
        if re.sub(rb"\s", b"", bytes(damaged)) != re.sub(r"\s", "", good).encode() and not _same(damaged, good):
            with pytest.raises(ValueError, match="is damaged, its checksum does not fit"):
                read_index(tmp_path)
    path.write_text(good)
    index = read_index(tmp_path)
    write_index(tmp_path, {**index, "files": index["files"] * 2})
    with pytest.raises(ValueError, match=r"names a file twice: \['00000\.rows', '00001\.rows'\]"):
        RowFolder(tmp_path)


def _same(damaged: bytearray, good: str) -> bool:
    """Whether a change of the text changes nothing of what it says, such as a space that became a tab."""
    try:
        return json.loads(damaged) == json.loads(good)
    except ValueError:
        return False


def test_files_of_different_vocabularies_do_not_mix(tmp_path: Path):
    other = type(VOCAB)(num_text=999, num_speech=64)
    files = [write_file(tmp_path / "a.rows", 1), write_file(tmp_path / "b.rows", 1, vocab=other)]
    with pytest.raises(ValueError, match=rf"b\.rows was made as .*{other.hash}.*a\.rows as .*{VOCAB.hash}"):
        index_of(files)


def test_the_reader_in_the_docs_reads_what_is_written(tmp_path: Path):
    page = (Path(__file__).parents[1] / "docs" / "rows.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 32
    (tmp_path / "reader.py").write_text(code)
    reader = runpy.run_path(str(tmp_path / "reader.py"))
    path = write_file(tmp_path / "a.rows", 3, 40)
    header, parts = reader["open_rows"](path)
    assert header["rows"] == 3
    for i in range(3):
        assert all(
            np.array_equal(a, b) for a, b in zip(reader["read_row"](parts, i), RowFile(path).row(i), strict=True)
        )
    path.write_bytes(path.read_bytes().replace(bytes([41, 0]), bytes([42, 0]), 1))
    _, parts = reader["open_rows"](path)
    with pytest.raises(ValueError, match="row 1 is damaged"):
        reader["read_row"](parts, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises((ValueError, struct.error)):
        reader["open_rows"](path)
