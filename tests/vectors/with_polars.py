"""Polars reads all columns of .parquet files, with their types."""

import polars
import rows

for name in ["folder", "people"]:
    expected = rows.read(f"{name}.jsonl")
    lines = rows.lines(f"{name}.jsonl")
    frame = polars.read_parquet(f"{name}.parquet")
    source_columns = rows.source_columns(expected)
    text_columns = source_columns + ["sha256", "model", "prepared"]
    types = {column: polars.String for column in text_columns}
    types |= {"width": polars.Int32, "height": polars.Int32, "vector": polars.Array(polars.Float32, 1536)}
    assert dict(frame.schema) == types, frame.schema
    for column in text_columns:
        cells = [rows.cell(row, column, line) for row, line in zip(expected, lines)]
        assert frame[column].to_list() == cells, (column, frame[column].to_list(), cells)
    assert frame["width"].to_list() == [int(row["width"]) for row in expected]
    assert rows.same_bits(frame["vector"].to_numpy(), rows.vectors(expected)), name

    # A lazy query finds a row by its path. Both files have one row with this path.
    lazy = polars.scan_parquet(f"{name}.parquet").filter(polars.col("path") == "photos/chelsea.png")
    assert lazy.select("path").collect().height == 1
