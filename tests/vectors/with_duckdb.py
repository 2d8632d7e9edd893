"""DuckDB reads .parquet and .jsonl files, and compares vectors."""

import duckdb
import numpy
import rows

database = duckdb.connect()
for name in ["folder", "people"]:
    expected_rows = rows.read(f"{name}.jsonl")
    json_lines = rows.lines(f"{name}.jsonl")  # `rows.cell` needs them for nested values
    vectors = rows.vectors(expected_rows)
    source_columns = rows.source_columns(expected_rows)
    # DuckDB ignores the case of names. So after "name", it renames "Name" to "Name_1".
    described = database.sql(f"DESCRIBE SELECT * FROM '{name}.parquet'").fetchall()
    names, types = [row[0] for row in described], [row[1] for row in described]
    expected_names = [column + ("_1" if column == "Name" else "") for column in source_columns + rows.ADDED]
    assert names == expected_names, names
    text_columns = source_columns + ["sha256", "model", "prepared"]
    assert types[:-1] == ["VARCHAR"] * len(text_columns) + ["INTEGER"] * 2, types  # the two are width and height
    assert types[-1] == "FLOAT[]", "if DuckDB now reads the length of the vectors, say so in docs/bulk.md"

    table = database.sql(f"SELECT * FROM '{name}.parquet'").fetchall()
    for row, expected_row, line, vector in zip(table, expected_rows, json_lines, vectors, strict=True):
        texts = [rows.cell(expected_row, column, line) for column in text_columns]
        assert list(row[: len(texts)]) == texts, (row[: len(texts)], texts)
        assert row[len(texts) : -1] == (int(expected_row["width"]), int(expected_row["height"]))
        assert rows.same_bits(numpy.array(row[-1], dtype=numpy.float32), vector)

    # hard.jpg has made-up numbers (see run.py), so its similarity means nothing.
    nearest = database.sql(f"""
        SELECT other.path, array_cosine_similarity(other.vector::FLOAT[1536], picture.vector::FLOAT[1536]) AS cosine
        FROM '{name}.parquet' other, '{name}.parquet' picture
        WHERE picture.path = 'photos/rocket.jpg' AND other.path != 'photos/hard.jpg'
        ORDER BY cosine DESC, other.path
    """).fetchall()
    # rocket.jpg is also compared with itself. again.jpg is the same picture.
    assert [path for path, _ in nearest[:2]] == ["photos/again.jpg", "photos/rocket.jpg"], nearest
    by_path = {row["path"]: vector.astype(numpy.float64) for row, vector in zip(expected_rows, vectors)}
    rocket = by_path["photos/rocket.jpg"]
    for path, cosine in nearest:
        other = by_path[path]
        exact = rocket @ other / numpy.linalg.norm(rocket) / numpy.linalg.norm(other)
        assert abs(cosine - exact) < 1e-5, (path, cosine, exact)

# DuckDB also reads the lines of JSON.
count = database.sql("SELECT count(*) FROM read_json('folder.jsonl') WHERE len(vector) = 1536").fetchall()
assert count == [(4,)], count  # the folder's broken.jpg has no row
