"""pyarrow reads all columns of .parquet files, with their types."""

import numpy
import pyarrow
import pyarrow.parquet
import rows

for name in ["folder", "people"]:
    expected = rows.read(f"{name}.jsonl")
    lines = rows.lines(f"{name}.jsonl")
    table = pyarrow.parquet.read_table(f"{name}.parquet")
    source_columns = rows.source_columns(expected)
    assert table.column_names == source_columns + rows.ADDED, table.column_names
    table.validate(full=True)

    # Of the columns with text, only the source's may contain null.
    for column in source_columns + ["sha256", "model", "prepared"]:
        field = table.schema.field(column)
        assert field.type == pyarrow.string() and field.nullable == (column in source_columns), field
        cells = [rows.cell(row, column, line) for row, line in zip(expected, lines)]
        assert table[column].to_pylist() == cells, (column, table[column].to_pylist(), cells)
    for column in ["width", "height"]:
        assert table.schema.field(column).type == pyarrow.int32()
        assert table[column].to_pylist() == [int(row[column]) for row in expected]

    vector = table.schema.field("vector")
    assert vector.type.list_size == 1536 and vector.type.value_type == pyarrow.float32(), vector
    assert not vector.nullable and not vector.type.value_field.nullable, vector
    found = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 1536)
    assert rows.same_bits(found, rows.vectors(expected)), name
    assert numpy.array_equal(found, numpy.load(f"{name}.npy"))

# One column can be read without the others.
assert pyarrow.parquet.read_table("people.parquet", columns=["name"]).column_names == ["name"]
