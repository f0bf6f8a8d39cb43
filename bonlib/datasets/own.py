"""The user's own tables, of paths of images or of strings."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false

import csv
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bonlib.core.checks import whole_number
from bonlib.core.paths import data_dir
from bonlib.datasets.splits import SPLITS, Split, check_split, seed_of_split
from bonlib.datasets.strings import LONGEST, TextSet
from bonlib.datasets.tables import (
    JUNK,
    UNKNOWN_CAMERA,
    LeftOut,
    OnError,
    Row,
    check_on_error,
    check_rows,
    make_table,
    rows_of,
)

if TYPE_CHECKING:
    import pandas as pd

_TEXT = {".csv": ",", ".tsv": "\t", ".txt": ","}  # what stands between the values of tables in text, by suffix
_PARTS = ("train", "validation", "test", "query", "gallery")


def image_table(root: Path, seed: int) -> "pd.DataFrame":
    """A CSV or parquet file with the columns path, identity, and perhaps camera and split.

    Paths are relative to the file's folder, or absolute. A split is ``train``, ``validation``, ``test``, ``query`` or
    ``gallery``; without that column the identities are split in the shares 50, 10 and 40 %. The identity ``-1`` is
    junk. CSV is in UTF-8, or UTF-16 with its byte order mark; ``.tsv`` has tabs; parquet needs pyarrow. Blanks around
    values are dropped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing, a value is empty or not one of those, or a file or an identity stands where
            it must not: the message names file, row and column.
    """
    given = _read_table(root)
    if missing := {"path", "identity"} - set(given.columns):
        raise ValueError(
            f"{root} has the columns {list(given.columns)}; missing: {', '.join(sorted(missing))}. "
            "Name them in the first row, with commas between. A table of strings needs column=…, --column on the "
            "command line."
        )
    text, parts = {name: _texts(given, name, root) for name in ("path", "identity")}, _parts(given, root, _PARTS)
    _warn_of_swallowed(given, root)
    _refuse_empty(root, text, "fill it, or leave the row out")
    cameras = given["camera"].tolist() if "camera" in given else [UNKNOWN_CAMERA] * len(given)
    numbers = [_camera(value, root, row) for row, value in enumerate(cameras)]
    rows: list[Row] = [
        (root.parent / path, JUNK if identity == "-1" else identity, part, camera)
        for path, identity, part, camera in zip(text["path"], text["identity"], parts, numbers, strict=True)
    ]
    check_rows(rows, [f"data row {row + 1}" for row in range(len(rows))], str(root))
    table = make_table(rows)
    junk = sum(identity == JUNK for _, identity, _, _ in rows)
    table.attrs["left out"] = {"junk, identity -1": junk} if junk else {}
    return table


def string_table(
    split: Split = "train",
    *,
    root: str | Path | None = None,
    column: str,
    identity: str = "identity",
    drop: float = 0.0,
    typos: float = 0.0,
    seed: int = 0,
    split_seed: int | None = None,
    on_error: OnError = "raise",
    keep_shared: bool = False,
) -> TextSet:
    """A CSV or parquet file with a column of strings and one of identities, and perhaps one called split.

    What users have who link records: customers, products or companies by their names. Files as in
    :func:`image_table`. A string that two identities share is left out, for in training it would be a false negative;
    one that an identity has twice counts once; those of the identity ``-1`` are junk. All are counted in a warning.
    Strings are the same where their first 62 characters are.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``; without a column split the identities are split
            50, 10, 40 %.
        root: the file.
        column: of the strings.
        identity: column of the identities.
        drop: share of n-grams left out of training strings, see :class:`~bonlib.datasets.strings.TextSet`.
        typos: share of characters changed in training strings, see there.
        seed: of the split.
        split_seed: of the split alone; by default ``seed``.
        on_error: ``"skip"`` leaves out rows without a string or an identity, and counts them.
        keep_shared: keep strings that several identities share, under each: to search among, not to train on.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing, a value is empty, or nothing is left.
    """
    import pandas as pd

    check_split(split)
    check_on_error(on_error)
    file = strings_file(root)
    given = _read_table(file)
    if missing := {column, identity} - set(given.columns):
        raise ValueError(
            f"{file} has the columns {list(given.columns)}; missing: {', '.join(sorted(missing))}; give their names as "
            "column and identity, on the command line --column and --identity."
        )
    table = pd.DataFrame({"string": _texts(given, column, file), "identity": _texts(given, identity, file)})
    table["part"] = _parts(given, file, tuple(SPLITS))
    _warn_of_swallowed(given, file)
    total, full = len(table), (table["string"] != "") & (table["identity"] != "")
    if on_error == "raise":
        values = {column: table["string"].tolist(), identity: table["identity"].tolist()}
        _refuse_empty(file, values, "fill it, or give on_error='skip' to leave such rows out")
    junk = full & (table["identity"] == "-1")
    table = table[full & ~junk]
    counts = {"empty": int((~full).sum()), "junk, identity -1": int(junk.sum())}
    table = table.assign(seen=table["string"].str[:LONGEST])  # what the encoder sees
    counts["repeated"] = int(table.duplicated(["seen", "identity"]).sum())
    table = table.drop_duplicates(["seen", "identity"])
    shared = table["seen"].duplicated(keep=False)
    if not keep_shared:
        same = shared & table["string"].duplicated(keep=False)
        counts["of two identities"] = int(same.sum())
        counts[f"of two identities by their first {LONGEST} characters"] = int((shared & ~same).sum())
    if left_out := {reason: count for reason, count in counts.items() if count}:
        told = ", ".join(f"{count} ({reason})" for reason, count in left_out.items())
        if shared.any() and not keep_shared:
            told += f"; of two identities is data row {_rows(table.index[shared])}"
        warnings.warn(f"Left out of {total} strings: {told}", LeftOut, stacklevel=3)
    sides = table.groupby("identity")["part"].nunique()
    if len(split_over := sides[sides > 1]):
        raise ValueError(
            f"{file} has the identity {split_over.index[0]!r} in several splits; identities of training, validation "
            "and test must differ."
        )
    alone = table[~shared].sort_values(["identity", "string"], kind="stable")
    rows = alone[rows_of(alone, split, 0.1, seed_of_split(seed, split_seed))]  # whatever else is kept, the same split
    if rows.empty:
        there = ", ".join(sorted(set(table["part"]) - {""})) or "none that is left"
        raise ValueError(
            f"{file} has no strings of the split {split!r}; it has {there}. Where there is no test, train without the "
            "final measure (--set test=false); measure and embed one that is there (--split)."
        )
    if keep_shared:  # an identity of which all strings are shared is in the split that the table says
        kept = shared & ((split == "all") | (table["part"] == split) | table["identity"].isin(rows["identity"]))
        rows = pd.concat([rows, table[kept]]).sort_values(["identity", "string"], kind="stable")
    names, labels = np.unique(rows["identity"].to_numpy(dtype=str), return_inverse=True)
    augmentation: dict[str, Any] = {"drop": drop, "typos": typos} if split == "train" else {}
    return TextSet(
        rows["string"].tolist(), torch.from_numpy(labels), names.tolist(),
        **augmentation, attributes={"row": rows.index.to_numpy() + 1},
        source={"table": file.name, "column": column, "left out": left_out},
    )  # fmt: skip


def strings_file(root: str | Path | None) -> Path:
    """The file of a table of strings, where none is given ``table.csv`` in the data directory.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    return _file(data_dir() / "table.csv" if root is None else Path(root).expanduser())


def _file(root: Path) -> Path:
    if not root.is_file():
        raise FileNotFoundError(f"root is {str(root)!r}, which is no file; expected a .csv, .tsv or .parquet file.")
    return root


def _read_table(root: Path) -> "pd.DataFrame":
    """The file as it is, text as text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, in another encoding, or of another kind than its suffix says.
    """
    import pandas as pd

    suffix = _file(root).suffix.lower()
    if suffix not in (*_TEXT, ".parquet", ".pq"):
        raise ValueError(f"root is {str(root)!r}; expected a name that ends in .csv, .tsv or .parquet.")
    if suffix in (".parquet", ".pq"):
        try:
            return pd.read_parquet(root, dtype_backend="numpy_nullable")  # else integers beside a null are floats
        except (OSError, ValueError) as error:
            raise ValueError(f"{root} is no parquet file, or damaged ({error}); write it anew.") from error
    beginning = root.read_bytes()[:4]
    encoding = "utf-16" if beginning[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skip_blank_lines": True, "encoding": encoding}
    try:
        separator = _TEXT[suffix]
        with root.open(encoding=encoding, newline="") as opened:
            reader, first, before = csv.reader(opened, delimiter=separator), [], 0
            while not any(map(str.strip, first)):  # a spreadsheet may put empty rows above
                before, first = reader.line_num, next(reader, [" no row"])
        names = [name.strip() for name in first]
        if len(names) == 1 and (other := re.search(r"[;\t|,]", names[0])):
            raise ValueError(f"{root} has {other[0]!r} between its names; save it with commas, or as .tsv with tabs.")
        with warnings.catch_warnings():  # of rows longer than the first, whose values would shift
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(root, sep=separator, skiprows=before, skipinitialspace=True, index_col=False, **options)
        if table.empty:
            raise ValueError(f"{root} has a first row and no data rows; add some.")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{root} has the column {twice[0]!r} twice; keep one of them.")
        return table.set_axis(names, axis=1)
    except UnicodeError as error:
        raise ValueError(f"{root} is not in UTF-8 ({error}); save it as UTF-8.") from error
    except pd.errors.EmptyDataError:
        raise ValueError(f"{root} is empty; expected a first row with the names of the columns.") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, csv.Error) as error:
        reason = str(error).strip()
        raise ValueError(f"{root} is no table ({reason}); quote values that hold commas, close each quote.") from error


def _warn_of_swallowed(table: "pd.DataFrame", file: Path) -> None:
    """Warn where a value seems to hold rows, as after a quote that is not closed; :func:`_texts` refuses it where used.

    From a place in one row to the same place in a later one each line break brings a row's worth of separators.
    """
    separator = _TEXT.get(file.suffix.lower())
    for column in table if separator else ():
        values = [value.strip() for value in table[column]]
        breaks = [value.count("\n") for value in values]
        held = [row for row, n in enumerate(breaks) if n and values[row].count(separator) == n * (table.shape[1] - 1)]
        if held:
            text = f"{file} may have lost {sum(breaks[row] for row in held)} rows inside the {column} of data row"
            warnings.warn(f"{text} {_rows(held)}: close the quote there, or double it.", LeftOut, stacklevel=4)


def _refuse_empty(file: Path, columns: Mapping[str, list[str]], cure: str) -> None:
    """Tell of all empty values of some columns at once.

    Raises:
        ValueError: if there is one.
    """
    empty = {name: [row for row, value in enumerate(values) if not value] for name, values in columns.items()}
    if told := [f"no {name} in data row {_rows(rows)}" for name, rows in empty.items() if rows]:
        raise ValueError(f"{file} has {', and '.join(told)}; {cure}.")


def _rows(index: Sequence[int]) -> str:
    """The first data rows at some places, and how many more there are."""
    more = f" and {len(index) - 3} more" if len(index) > 3 else ""
    return ", ".join(str(row + 1) for row in index[:3]) + more


def _parts(given: "pd.DataFrame", file: Path, allowed: tuple[str, ...]) -> list[str]:
    """The column split; empty texts where a table has none."""
    parts = _texts(given, "split", file) if "split" in given else [""] * len(given)
    some = any(parts)
    for row, part in enumerate(parts, 1):
        if part not in (*allowed, ""):
            raise ValueError(f"{file} has the split {part!r} in data row {row}; allowed are {', '.join(allowed)}.")
        if some and part == "":
            raise ValueError(f"{file} has no split in data row {row}; fill the column or leave it out.")
    return parts


def _texts(given: "pd.DataFrame", column: str, root: Path) -> list[str]:
    """The values of a column as text, blanks around them dropped."""
    import pandas as pd

    values = given[column].tolist()
    for row, value in enumerate(values):
        if isinstance(value, str) and "\n" in value.strip() and root.suffix.lower() in _TEXT:
            raise ValueError(
                f"{root} has a line break in the {column} of data row {row + 1}, {value[:40]!r}: a quote at the "
                "beginning of a value that is not closed swallows rows. Double it; or, where the value has a line "
                "break, put a blank there, or write a .parquet file."
            )
        if pd.api.types.is_scalar(value) and pd.isna(value):
            values[row] = ""
        elif isinstance(value, float):
            if not value.is_integer() or abs(value) >= 2**53:  # beyond, floats leave out whole numbers
                raise ValueError(
                    f"{root} has the {column} {value!r} in data row {row + 1}; give text or whole numbers."
                )
            values[row] = int(value)
        elif isinstance(value, bytes):  # a binary column of parquet
            try:
                values[row] = value.decode()
            except UnicodeDecodeError:
                text = f"{root} has bytes that are no UTF-8 as {column} in data row {row + 1}"
                raise ValueError(f"{text}; write the column as text.") from None
        elif not pd.api.types.is_scalar(value):
            text = f"{root} has a {type(value).__name__} as {column} in data row {row + 1}"
            raise ValueError(f"{text}; give text or whole numbers.")
    return [str(value).strip() for value in values]


def _camera(value: Any, root: Path, row: int) -> int:
    """A camera as a whole number; nothing at all is an unknown one."""
    import pandas as pd

    if (isinstance(value, str) and not value.strip()) or (pd.api.types.is_scalar(value) and pd.isna(value)):
        raise ValueError(f"{root} has no camera in data row {row + 1}; give numbers, -1 for unknown.")
    try:
        text = value.strip() if isinstance(value, str) else value
        number = int(text) if isinstance(text, str) and re.fullmatch(r"[+-]?\d+", text) else float(text)
        return whole_number("camera", number if not isinstance(value, bool) else value, UNKNOWN_CAMERA, 2**31 - 1)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{root} has the camera {value!r} in data row {row + 1}, which is no integer from -1 to 2147483647; give "
            "numbers, -1 for unknown."
        ) from None
