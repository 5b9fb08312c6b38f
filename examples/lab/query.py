"""Which tag grows on which machine, and by which stack: asked of the Parquet files that kdpool wrote.

    python3 query.py DIR
"""

import sys

import duckdb

GROWTH = """
    SELECT machine, date, tag,
           max(bytes) - min(bytes) AS grown,
           max(at_least) AS survivors,
           round((max(bytes) - min(bytes)) * 60000 / max(elapsed_ms)) AS per_minute
    FROM read_parquet($files, hive_partitioning = true)
    GROUP BY ALL HAVING max(elapsed_ms) > 0 ORDER BY grown DESC, machine
"""

STACKS = """
    SELECT machine, stack, max(delta_bytes) AS grown, any_value(frames) AS frames
    FROM read_parquet($files, hive_partitioning = true)
    WHERE look = 'check' GROUP BY ALL HAVING grown > 0 ORDER BY grown DESC
"""

for table, question in (("tags", GROWTH), ("stacks", STACKS)):
    answer = duckdb.execute(question, {"files": f"{sys.argv[1]}/{table}/**/*.parquet"})
    print("  ".join(column[0] for column in answer.description))
    for row in answer.fetchall():
        print("  ".join(str(value) for value in row))
    print()
