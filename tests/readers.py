"""Reads the shards of a demo as trainers do, and holds them to the columns that the README documents.

    python tests/readers.py DEMO_FOLDER README.md
"""

import json
import pathlib
import re
import sys

import duckdb
import pyarrow.dataset
import pyarrow.parquet

demo, readme = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
entries = [json.loads(line) for line in (demo / "manifest.jsonl").read_text().splitlines()]
files = [str(demo / entry["path"]) for entry in entries]
assert [entry["sequence"] for entry in entries] == list(range(1, len(entries) + 1)), "sequence has gaps"

# `| text | string | …` in the section on columns.
section = readme.read_text().split("### Columns")[1].split("\n### ")[0].split("\n## ")[0]
documented = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, re.M)
schema = pyarrow.dataset.dataset(files).schema
assert [(f.name, str(f.type)) for f in schema] == documented, f"{schema}\nis not what the README says: {documented}"

table = pyarrow.dataset.dataset(files).to_table()
assert table.num_rows == sum(entry["rows"] for entry in entries) == 190, table.num_rows
for path in files:
    footer = pyarrow.parquet.ParquetFile(path).metadata
    group_rows = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    assert max(group_rows) <= 8192, group_rows
    assert b"winnowd.pipeline" in footer.metadata and json.loads(footer.metadata[b"winnowd.offsets"])

rows, positions, least, weight = duckdb.sql(
    f"""SELECT count(*), count(DISTINCT (topic, "partition", "offset")), min(inclusion_probability),
               max(abs(sample_weight * inclusion_probability - 1)) FROM read_parquet({files})"""
).fetchall()[0]
assert rows == positions == table.num_rows, (rows, positions)
assert 0 < least <= 1 and weight < 1e-9, (least, weight)
print(f"pyarrow {pyarrow.__version__} and duckdb {duckdb.__version__}: {rows} rows in {len(files)} shards, {len(documented)} columns as documented")
