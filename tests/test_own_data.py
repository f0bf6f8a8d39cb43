"""Folders and tables of users: what is left out is counted and told, what cannot be is refused with file and row."""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bonlib import load_dataset
from bonlib.core import paths
from bonlib.datasets import cache
from bonlib.datasets.splits import SPLITS
from bonlib.datasets.tables import LeftOut


def picture(path: Path, value: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), value, dtype=np.uint8)).save(path, "png")


@pytest.fixture
def photos(folders):
    for i in range(6):
        for j in range(3):
            picture(folders / "photos" / f"thing {i}" / f"{j}.png", 20 * i + j)
    return folders / "photos"


def everything(root, **options):
    return load_dataset("folder", "all", root=root, size=16, **options)


def test_a_folder_with_images_inside_another_is_refused(photos):
    picture(photos / "thing 3" / "more" / "4.png", 90)
    with pytest.raises(ValueError, match=r"thing 3 has images, and so has .*more, 1 such folders in all"):
        everything(photos)


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN"])
def test_folders_that_systems_put_beside_images_hold_no_identities(photos, name):
    picture(photos / "thing 0" / name / "0.png" / "THUMB.png", 70)
    picture(photos / name / "thing 1" / "0.png", 80)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeftOut)
        assert everything(photos).num_classes == 6


def test_links_to_folders_and_files_are_followed(photos, folders):
    for i in range(4):
        picture(folders / "elsewhere" / f"far {i}" / "0.png", 100 + i)
        picture(folders / "elsewhere" / f"far {i}" / "1.png", 110 + i)
        (photos / f"far {i}").symlink_to(folders / "elsewhere" / f"far {i}")
    picture(folders / "loose.png", 200)
    (photos / "thing 0" / "linked.png").symlink_to(folders / "loose.png")
    data = everything(photos)
    assert data.num_classes == 10
    assert len(data) == 6 * 3 + 4 * 2 + 1


def test_a_link_to_a_folder_above_ends(photos):
    (photos / "thing 0" / "up").symlink_to(photos)
    (photos / "thing 1" / "self").symlink_to(photos / "thing 1")
    assert len(everything(photos)) == 18


def test_one_file_under_two_identities_is_refused(photos):
    (photos / "other").mkdir()
    (photos / "other" / "a.png").symlink_to(photos / "thing 0" / "1.png")
    with pytest.raises(ValueError, match=r"one file under another identity, 'thing 0' and 'other': .*keep one of them"):
        everything(photos)


def test_what_is_left_out_is_counted_by_reason_and_told(photos):
    (photos / "thing 0" / "notes.txt").write_text("x")
    (photos / "thing 1" / "README").write_text("x")
    (photos / "thing 1" / "broken.png").symlink_to(photos / "nowhere.png")
    for name in ("._0.png", ".DS_Store", "Thumbs.db"):
        (photos / "thing 2" / name).write_text("x")
    told = r"(?=.*1 \(suffix \.txt\))(?=.*1 \(suffix missing\))(?=.*1 \(broken link\))"  # in whatever order
    with pytest.warns(LeftOut, match=f"Left out: {told}"):
        data = everything(photos)
    assert data.source["left out"] == {
        "suffix .txt": 1, "suffix missing": 1, "broken link": 1, "hidden": 2, "of the system": 1,
    }  # fmt: skip
    assert len(data) == 18


def test_files_that_systems_add_are_no_reason_for_a_warning(photos):
    (photos / "thing 2" / ".DS_Store").write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert everything(photos).source["left out"] == {"hidden": 1}


@pytest.mark.parametrize("suffix", [".PNG", ".jp2", ".tga", ".JPEG", ".webp", ".pgm", ".ico", ".dds"])
def test_images_go_by_what_pillow_opens(photos, suffix):
    Image.new("RGB", (32, 32)).convert("L" if suffix == ".pgm" else "RGB").save(photos / "thing 0" / f"x{suffix}")
    assert len(everything(photos)) == 19


@pytest.mark.parametrize("name", ["-1", "0", "-", "nan", "None", "a'b", "ü", "x\ty", "x\ny", "%s", "{x}", " "])
def test_a_folder_of_any_name_is_an_identity(photos, name):
    picture(photos / name / "0.png", 77)
    data = everything(photos)
    assert name in data.class_names
    assert data.of_class(name).shape[0] == 1


def rows(**columns):
    base = [{"path": f"thing {i}/{j}.png", "identity": f"p{i}"} for i in range(6) for j in range(3)]
    return [row | {name: make(n) for name, make in columns.items()} for n, row in enumerate(base)]


def table(photos, content, name="list.csv", **options):
    file = photos / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif file.suffix.lower() in (".parquet", ".pq"):
        pd.DataFrame(content).to_parquet(file)
    else:
        pd.DataFrame(content).to_csv(file, index=False, **options)
    return load_dataset("table", "all", root=file, size=16)


def test_blanks_around_values_make_no_second_identity(photos):
    content = rows()
    content[1]["identity"], content[2]["identity"] = " p0", "p0 "
    content[4]["path"] = " thing 1/1.png"
    assert table(photos, content).num_classes == 6


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["list.csv", "LIST.CSV", "list.tsv"])
def test_encodings_with_their_mark_and_suffixes_in_any_case(photos, encoding, name):
    content = rows()
    content[0]["identity"] = content[1]["identity"] = content[2]["identity"] = "Ünïcode 漢"
    data = table(photos, content, name, encoding=encoding, sep="\t" if name.endswith("tsv") else ",")
    assert "Ünïcode 漢" in data.class_names


def test_parquet_in_any_case_and_with_numbers(photos):
    content = [row | {"identity": n // 3} for n, row in enumerate(rows())]
    assert table(photos, content, "LIST.PARQUET").class_names == ["0", "1", "2", "3", "4", "5"]


def test_junk_is_named(photos):
    content = rows()
    content[0]["identity"] = content[1]["identity"] = "-1"
    with pytest.warns(LeftOut, match=r"Left out: 2 \(junk, identity -1\)"):
        data = table(photos, content)
    assert (len(data), data.num_classes) == (16, 6)


def changed(row, **values):
    content = rows()
    content[row] |= values
    return content


split = lambda part: {"split": lambda n: part if n < 9 else "train"}  # noqa: E731


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (changed(2, identity=None), "x.parquet", r"x.parquet has no identity in data row 3; fill it, or leave the row"),
        (changed(4, path=None), "x.parquet", r"has no path in data row 5"),
        (changed(2, identity=""), "x.csv", r"x.csv has no identity in data row 3; fill it"),
        (changed(3, path="  "), "x.csv", r"has no path in data row 4"),
        (
            rows(camera=lambda n: 1.5 if n == 2 else 1),
            "x.csv",
            r"has the camera '1.5' in data row 3, which is no integer",
        ),
        (rows(camera=lambda n: "left" if n == 0 else 1), "x.csv", r"has the camera 'left' in data row 1"),
        (rows(camera=lambda n: None if n == 7 else 1), "x.parquet", r"has no camera in data row 8"),
        (rows(camera=lambda n: None if n == 7 else 1), "x.csv", r"has no camera in data row 8"),
        (rows(camera=lambda n: 2.5 if n == 1 else 1.0), "x.parquet", r"has the camera 2.5 in data row 2"),
        (
            rows(split=lambda n: "train" if n else "dev"),
            "x.csv",
            r"has the split 'dev' in data row 1; allowed are train",
        ),
        (rows(split=lambda n: "" if n == 5 else "train"), "x.csv", r"has no split in data row 6"),
        (changed(1, path="thing 0/0.png"), "x.csv", r"lists one file again: data row 1 and data row 2"),
        (changed(1, path="./thing 1/../thing 0/0.png"), "x.csv", r"lists one file again: data row 1 and data row 2"),
        (changed(4, path="thing 0/0.png"), "x.csv", r"one file under another identity, 'p1' and 'p0': data row 1 and"),
        (
            [*rows(split=lambda n: "query"), rows()[0] | {"split": "gallery"}],
            "x.csv",
            r"one file in gallery and in query",
        ),
        ([*rows(split=lambda n: "train"), rows()[0] | {"split": "test"}], "x.csv", r"one file in test and in train"),
        (
            rows(split=lambda n: "test" if n == 1 else "train"),
            "x.csv",
            r"identity 'p0' in train \(data row 1\) and in test",
        ),
        (rows(split=lambda n: "gallery" if n == 4 else "validation"), "x.csv", r"identity 'p1' in validation"),
        (b"", "x.csv", r"x.csv is empty; expected a first row with the names of the columns"),
        (b"path;identity\na.png;b\n", "x.csv", r"has ';' between its names; save it with commas"),
        ("path,identity\n\u00e9.png,b\n".encode("latin-1"), "x.csv", r"x.csv is not in UTF-8 .* save it as UTF-8"),
        (b"path,identity\na.png,b,c,d\nx,y,z,w,v,u\n", "x.csv", r"x.csv is no table .* quote values"),
        (b"path,identity\na.png,b,c\n", "x.csv", r"x.csv is no table .* quote values"),
        (b'path,identity\na.png,"b\nb.png,b\nc.png,c"\n', "x.csv", r"x.csv has a line break in the identity of .* 1"),
        (b"path,identity\n", "x.csv", r"x.csv has a first row and no data rows"),
        (b"path\tidentity\na.png\tb\n", "x.csv", r"has '\\t' between its names"),
        (b"path,identity\na.png,b\n,b\n,c\n,d\n,e\n", "x.csv", r"has no path in data row 2, 3, 4 and 1 more"),
        (b"no parquet", "x.parquet", r"x.parquet is no parquet file, or damaged"),
        (b"path,identity\n", "x.xlsx", r"expected a name that ends in .csv, .tsv or .parquet"),
    ],
)
def test_tables_that_are_not_as_they_should_be_are_refused_with_file_row_and_cure(photos, content, name, message):
    with pytest.raises(ValueError, match=message):
        table(photos, content, name)


def test_places_that_cannot_be_written_go_on_without_a_cache_and_one_warning(photos, folders, monkeypatch):
    (folders / "a file").write_text("x")
    monkeypatch.setenv("BONLIB_DATA", str(folders / "a file" / "data"))
    monkeypatch.setattr(cache, "_warned", False)
    with pytest.warns(UserWarning, match="so data are made anew each time; set BONLIB_DATA to a folder"):
        assert len(everything(photos)) == 18
    assert len(load_dataset("folder", "all", root=photos, size=24)) == 18  # without a second warning
    with pytest.raises(OSError, match="give another place, or set BONLIB_DATA, BONLIB_RESULTS or BONLIB_FIGURES"):
        paths.write_atomically(folders / "a file" / "x.txt", lambda file: file.write_text("x"))


def test_records_of_the_checkout_are_read_wherever_data_lie(folders, monkeypatch):
    monkeypatch.delenv("BONLIB_RESULTS")
    assert paths.results_dir() == paths.project_dir() / "data" / "results"
    monkeypatch.setattr(paths, "project_dir", lambda: None)
    assert paths.results_dir() == paths.data_dir() / "results"


def test_a_user_without_a_home_has_a_place_for_data(monkeypatch):
    monkeypatch.setattr(paths, "project_dir", lambda: None)
    monkeypatch.delenv("BONLIB_DATA", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", staticmethod(no_home))
    assert paths.data_dir().name == "bonlib"


def test_the_package_imports_where_nothing_can_be_written(tmp_path):
    import shutil
    import subprocess

    source = Path(paths.__file__).parents[1]
    shutil.copytree(source, tmp_path / "bonlib", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [tmp_path / "bonlib", *(path for path in (tmp_path / "bonlib").rglob("*") if path.is_dir())]:
        (folder / "__pycache__").write_text("a file, so that no folder can be made")
    script = (
        "import numpy as np, torch; from bonlib.bag import BagOfNegatives;"
        "bag = BagOfNegatives(np.arange(40) // 4, 8, batch_size=8);"
        "[bag.update(i, torch.randn(8, 8)) for i in bag]; print(bag.stats()['filled'])"
    )
    environment = os.environ | {
        "HOME": "/dev/null/home",
        "XDG_CACHE_HOME": "/dev/null/cache",
        "PYTHONPATH": str(tmp_path),
    }
    environment |= {"NUMBA_CACHE_DIR": "/dev/null/numba", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) > 0.5


def test_binary_columns_are_text_and_lists_are_refused(tmp_path):
    names = [f"Zürich {i} {j}".encode() for i in range(8) for j in range(3)]
    table = pd.DataFrame({"name": names, "identity": [f"id {i}".encode() for i in range(8) for _ in range(3)]})
    table.to_parquet(tmp_path / "names.parquet")
    data = load_dataset("table", "all", root=tmp_path / "names.parquet", column="name")
    assert sorted(data.strings)[0] == "Zürich 0 0"
    assert data.class_names[0] == "id 0"
    table.assign(name=[b"\xff"] * 24).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"bad.parquet has bytes that are no UTF-8 as name in data row 1; write"):
        load_dataset("table", "all", root=tmp_path / "bad.parquet", column="name")
    table.assign(name=[["a"]] * 24).to_parquet(tmp_path / "lists.parquet")
    with pytest.raises(ValueError, match=r"lists.parquet has a \w+ as name in data row 1; give text or whole numbers"):
        load_dataset("table", "all", root=tmp_path / "lists.parquet", column="name")


def test_blank_lines_above_the_names_of_columns_do_no_harm(tmp_path):
    rows = "".join(f"place {i} {j},{i}\n" for i in range(8) for j in range(3))
    (tmp_path / "names.csv").write_text(f"\n\nname,identity\n{rows}")
    assert len(load_dataset("table", "all", root=tmp_path / "names.csv", column="name")) == 24


@pytest.mark.parametrize("above", [",\n", ",\n,\n\n", " , \n"])
def test_empty_rows_above_the_names_of_columns_do_no_harm(tmp_path, above):
    rows = "".join(f"place {i} {j},{i}\n" for i in range(8) for j in range(3))
    (tmp_path / "names.csv").write_text(f"{above}name,identity\n{rows}")
    data = load_dataset("table", "all", root=tmp_path / "names.csv", column="name")
    assert (len(data), data.num_classes) == (24, 8)
    assert sorted(data.attributes["row"]) == list(range(1, 25))


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("apart", [1, 2, 9])
def test_rows_that_a_quote_swallows_are_told_or_refused(tmp_path, column, apart):
    lines = [[f"name {i}", f"{i // 3}", "small"] for i in range(30)]
    for row in (5, 5 + apart):
        lines[row][column] = '"5 inch'
    text = "\n".join(",".join(line) for line in [["name", "identity", "size"], *lines])
    (tmp_path / "names.csv").write_text(text + "\n")
    if column < 2:
        with pytest.raises(ValueError, match="a quote at the beginning of a value that is not closed swallows rows"):
            load_dataset("table", "all", root=tmp_path / "names.csv", column="name")
    else:
        told = f"may have lost {apart} rows inside the size of data row 6: close the quote"
        with pytest.warns(LeftOut, match=told):
            load_dataset("table", "all", root=tmp_path / "names.csv", column="name")


def test_descriptions_of_several_lines_are_no_reason_for_a_warning(tmp_path):
    rows = [(f"name {i}", f"{i // 3}", "red, or blue,\nand so on\nor not") for i in range(30)]
    pd.DataFrame(rows, columns=["name", "identity", "text"]).to_csv(tmp_path / "names.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeftOut)
        assert len(load_dataset("table", "all", root=tmp_path / "names.csv", column="name")) == 30


def test_large_numbers_beside_a_null_stay_as_they_are(tmp_path):
    ids = [1_234_567_890_123_456_700 + i // 3 for i in range(30)]
    table = pd.DataFrame({"name": [f"name {i}" for i in range(31)], "identity": pd.array([*ids, None], dtype="Int64")})
    table.to_parquet(tmp_path / "names.parquet")
    with pytest.warns(LeftOut, match=r"1 \(empty\)"):
        data = load_dataset("table", "all", root=tmp_path / "names.parquet", column="name", on_error="skip")
    assert data.class_names == sorted({str(number) for number in ids})
    table.assign(identity=table["identity"].astype("float64")).to_parquet(tmp_path / "floats.parquet")
    with pytest.raises(ValueError, match=r"has the identity 1.23\d+e\+18 in data row 1; give text or whole numbers"):
        load_dataset("table", "all", root=tmp_path / "floats.parquet", column="name", on_error="skip")


@pytest.mark.parametrize(
    ("above", "told"),
    [
        (("data/train", "data/val"), "train, val: splits, not identities"),
        (("train", "holdout/test"), "test, train: splits, not identities"),
    ],
)
def test_splits_are_no_identities_however_deep_they_lie(folders, above, told):
    for folder in above:
        for i in range(8):
            picture(folders / "deep" / folder / f"p{i}" / "0.png", i)
    with pytest.raises(ValueError, match=told):
        everything(folders / "deep")


def test_folders_of_one_name_in_several_places_are_told(folders):
    for part, shift in (("Train_set", 0), ("Test_set", 1)):
        for i in range(6):
            picture(folders / "parted" / part / f"p{i + 3 * shift}" / "0.png", i + 50 * shift)
    with pytest.warns(UserWarning, match="3 names of folders .* such as Test_set/p3 and Train_set/p3"):
        assert everything(folders / "parted").num_classes == 12


def test_seven_identities_are_enough_for_each_split(folders):
    for i in range(7):
        for j in range(2):
            picture(folders / "few" / f"p{i}" / f"{j}.png", 20 * i + j)
    counts = [load_dataset("folder", s, root=folders / "few", size=16).num_classes for s in SPLITS]
    assert sum(counts) == 7
    assert min(counts) >= 1


def test_what_is_held_out_of_training_has_pairs_where_training_has(folders):
    names = [(f"n{i} {j}", f"i{i}", "train") for i in range(60) for j in range(3 if i < 12 else 1)]
    names += [(f"t{i} {j}", f"t{i}", "test") for i in range(5) for j in range(2)]
    pd.DataFrame(names, columns=["name", "identity", "split"]).to_csv(folders / "st.csv", index=False)
    for seed in range(8):
        held_out = load_dataset("table", "validation", root=folders / "st.csv", column="name", seed=seed)
        assert held_out.labels.bincount().max() > 1
        assert held_out.num_classes == 6


@pytest.mark.parametrize(("option", "value"), [("size", "64"), ("size", 64.0), ("size", None), ("ks", 5), ("ks", [0])])
def test_sizes_and_ranks_that_are_none_are_refused(photos, option, value):
    with pytest.raises(ValueError, match=f"{option} is "):
        load_dataset("folder", "all", root=photos, **{"size": 16} | {option: value})
