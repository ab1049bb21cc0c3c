"""Reads shards as trainers do, and holds them to what the README says under "Columns" and "For trainers", whose snippets it runs.

    python tests/readers.py DEMO_FOLDER README.md                what a demo has published
    python tests/readers.py --follow N DATA README.md            an output that grows, until N rows were seen; prints their ids whenever there are more
    python tests/readers.py --split DATA README.md               both splits and the side files; prints the ids of either split
"""

import argparse
import ast
import collections
import csv
import json
import os
import pathlib
import re
import shutil
import tempfile
import time

scratch = tempfile.mkdtemp(prefix="readers-")
os.environ |= {"HF_HOME": scratch, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import datasets
import duckdb
import polars
import pyarrow
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

# How many columns the first versions had.
OLDER_VERSIONS = [15, 17]


def section(readme, title):
    """From a heading to the next one of its rank or a higher one."""
    rank = title.split(" ")[0]
    text = readme.split(f"\n{title}\n")[1]
    return re.split(rf"^#{{2,{len(rank)}}} ", text, maxsplit=1, flags=re.M)[0]


def snippets(readme):
    return re.findall(r"^```python\n(.*?)^```$", section(readme, "### For trainers"), re.M | re.S)


def functions(readme):
    """What the snippets define, without what they do."""
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    body = [node for snippet in snippets(readme) for node in ast.parse(snippet).body if isinstance(node, kept)]
    names = {}
    exec(compile(ast.Module(body, type_ignores=[]), "README.md", "exec"), names)
    return names


def run(readme, **names):
    for number, snippet in enumerate(snippets(readme)):
        exec(compile(snippet, f"README.md, snippet {number + 1}", "exec"), names)
    return names


def check_columns(files, readme):
    # `| text | string | …` in the section on columns.
    documented = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section(readme, "### Columns"), re.M)
    schema = pyarrow.dataset.dataset(files).schema
    assert [(f.name, str(f.type)) for f in schema] == documented, f"{schema}\nis not what the README says: {documented}"
    return documented


def check_files(files):
    for path in files:
        footer = pyarrow.parquet.ParquetFile(path).metadata
        group_rows = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        assert max(group_rows) <= 8192, group_rows
        for group in range(footer.num_row_groups):
            columns = [footer.row_group(group).column(i) for i in range(footer.num_columns)]
            assert all(column.has_offset_index for column in columns)
            # Free text has no statistics that anybody could use.
            assert all(column.has_column_index for column in columns if column.path_in_schema not in ("text", "metadata"))
        assert b"winnowd.pipeline" in footer.metadata and json.loads(footer.metadata[b"winnowd.offsets"])


def check_shuffled(files):
    """Offsets of a partition are as often followed by a lower one as by a higher one: five standard errors."""
    ups = downs = 0
    for path in files:
        last = {}
        assert pyarrow.parquet.ParquetFile(path).metadata.metadata[b"winnowd.shuffled"] == b"true"
        for row in pyarrow.parquet.read_table(path, columns=["partition", "offset"]).to_pylist():
            before = last.get(row["partition"])
            if before is not None:
                ups, downs = ups + (row["offset"] > before), downs + (row["offset"] < before)
            last[row["partition"]] = row["offset"]
    # Neighbours share a row: the variance of the number of ascents of a permutation is n / 12.
    assert abs(ups - downs) / 2 < 5 * ((ups + downs) / 12) ** 0.5 + 1, (ups, downs)


def check_each_row_once(files, expected):
    rows, positions, least, weight = duckdb.sql(
        """SELECT count(*), count(DISTINCT (topic, "partition", "offset")), min(inclusion_probability),
                  max(abs(sample_weight * inclusion_probability - 1)) FROM read_parquet($files)""",
        params={"files": files},
    ).fetchall()[0]
    assert rows == positions == expected, (rows, positions)
    assert 0 < least <= 1 and weight < 1e-9, (least, weight)


def check_pinned(data, readme, entries, table):
    """Up to each number of the manifest, whatever else has come: each row once, by the streaming loop and in epochs."""
    ids = collections.defaultdict(list)
    for entry in entries:
        ids[entry["sequence"]] = pyarrow.parquet.read_table(data / entry["path"], columns=["id"])["id"].to_pylist()
    for until in range(1, len(entries) + 1):
        names = run(readme, data=str(data), until=until)
        expected = sorted(id for number in range(1, until + 1) for id in ids[number])
        assert sorted(row["id"] for row in names["epoch"]) == expected
        assert sorted(row["id"] for row in names["both"]["train"]) == expected and list(names["both"]) == ["train"]
        for how in ("by_pyarrow", "by_polars", "by_duckdb"):
            assert sorted(names[how]["id"].to_pylist() if how != "by_polars" else names[how]["id"].to_list()) == expected, how
        assert sorted(row["id"] for row in names["by_datasets"]) == expected
        rest = [row for number, row in names["stream"](str(data), after=until)]
        assert sorted([*expected, *(row["id"] for row in rest)]) == sorted(table["id"].to_pylist())


def check_versions(data, readme, entries):
    """Shards of all versions, read together: those of older ones have the columns that there were then."""
    folder = pathlib.Path(scratch, "versions")
    (folder / "shards").mkdir(parents=True)
    names = pyarrow.parquet.read_schema(data / entries[0]["path"]).names
    source = pyarrow.concat_tables([pyarrow.parquet.read_table(data / entry["path"]) for entry in entries])
    lines, expected = [], {}
    for number, columns in enumerate([*OLDER_VERSIONS, len(names)], start=1):
        path = f"shards/{number}.parquet"
        pyarrow.parquet.write_table(source.slice(20 * number, 20).select(names[:columns]), folder / path)
        lines.append(json.dumps({"sequence": number, "path": path, "rows": 20}) + "\n")
    expected = {id: number for number in range(1, 4) for id in source.slice(20 * number, 20)["id"].to_pylist()}
    (folder / "manifest.jsonl").write_text("".join(lines))
    # Something that comes later must not be seen.
    (folder / "manifest.jsonl").open("a").write('{"sequence": 4, "path": "shards/none.parquet"')
    found = run(readme, data=str(folder), until=None)
    tables = {
        "pyarrow": found["by_pyarrow"],
        "polars": found["by_polars"].to_arrow(),
        "duckdb": found["by_duckdb"],
        "datasets": pyarrow.Table.from_pylist(list(found["by_datasets"])),
    }
    for how, table in tables.items():
        assert sorted(table.column_names) == sorted(names), (how, table.column_names)
        assert sorted(table["id"].to_pylist()) == sorted(expected), how
        for row in table.to_pylist():
            for place, name in enumerate(names):
                if place >= [*OLDER_VERSIONS, len(names)][expected[row["id"]] - 1]:
                    assert row[name] is None, (how, name, row[name])
    # The same values whoever reads them.
    keys = ["id", "offset", "sample_weight", "text"]
    as_rows = {how: sorted(tuple(row[key] for key in keys) for row in table.to_pylist()) for how, table in tables.items()}
    assert all(rows == as_rows["pyarrow"] for rows in as_rows.values())


def demo(data, readme):
    entries = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    files = [str(data / entry["path"]) for entry in entries]
    assert [entry["sequence"] for entry in entries] == list(range(1, len(entries) + 1)), "sequence has gaps"
    documented = check_columns(files, readme)
    table = pyarrow.dataset.dataset(files).to_table()
    assert table.num_rows == sum(entry["rows"] for entry in entries) == 190, table.num_rows
    check_files(files)
    check_shuffled(files)
    check_each_row_once(files, table.num_rows)
    check_pinned(data, readme, entries, table)
    check_versions(data, readme, entries)
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (pyarrow, polars, duckdb, datasets))
    print(f"{versions}: {table.num_rows} rows in {len(files)} shards, {len(documented)} columns as documented")


def follow(data, readme, n_rows):
    """As a trainer that is there all the time: it looks again whenever it has read everything."""
    names, after, ids, rounds = functions(readme), 0, [], 0
    deadline = time.monotonic() + 600
    while len(ids) < n_rows:
        assert time.monotonic() < deadline, f"{len(ids)} of {n_rows} rows after ten minutes"
        if not (data / "manifest.jsonl").exists() or not names["shards"](data, after):
            time.sleep(0.02)
            continue
        rounds += 1
        for number, row in names["stream"](str(data), after):
            ids.append(row["id"])
            after = number
        print(json.dumps({"rounds": rounds, "shards": after, "seen": len(ids), "ids": ids}), flush=True)


def check_side_files(data, entries):
    """As `litdata.index_parquet_dataset` and fms-fsdp's counting of files would make them, but for files that nobody published."""
    for name, files in {
        "shards": [entry for entry in entries if entry["rows"]],
        "validation": [entry["validation"] for entry in entries if "validation" in entry],
    }.items():
        index = json.loads((data / name / "index.json").read_text())
        assert (index["config"]["item_loader"], index["winnowd_sequence"]) == ("ParquetLoader", len(entries))
        chunks = []
        for file in files:
            path = data / file["path"]
            footer = pyarrow.parquet.ParquetFile(path)
            assert index["config"]["data_format"] == [str(column.type) for column in footer.schema_arrow]
            chunks.append({"chunk_bytes": path.stat().st_size, "chunk_size": footer.metadata.num_rows, "dim": None, "filename": path.name})
        assert index["chunks"] == chunks, name
    counts = {}
    with (data / "meta" / "combined_counts.csv").open() as file:
        for row in csv.DictReader(file):
            counts[row["dataset/filename"]] = int(row["documents"])
    for name in ("shards", "validation"):
        prefix = f"/{name}/"
        of_dataset = {path.removeprefix(prefix): n for path, n in counts.items() if path.startswith(prefix)}
        assert of_dataset == {path.name: pyarrow.parquet.read_metadata(path).num_rows for path in (data / name).glob("*.parquet") if path.name in of_dataset}
        assert of_dataset
    assert len(counts) == len(entries) + sum("validation" in entry for entry in entries)


def both_splits(data, readme):
    names = functions(readme)
    check_side_files(data, names["shards"](data))
    loaded = datasets.load_dataset("parquet", data_files=names["split"](data), streaming=True)
    print(json.dumps({split: [row["id"] for row in rows] for split, rows in loaded.items()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("readme", type=pathlib.Path)
    parser.add_argument("--follow", type=int)
    parser.add_argument("--split", action="store_true")
    arguments = parser.parse_args()
    try:
        if arguments.follow:
            follow(arguments.data, arguments.readme.read_text(), arguments.follow)
        elif arguments.split:
            both_splits(arguments.data, arguments.readme.read_text())
        else:
            demo(arguments.data, arguments.readme.read_text())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
