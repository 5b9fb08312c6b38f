"""Asks the Parquet files that kdpool wrote what goes on in the lab.

    python3 query.py DIR
"""

import sys

import duckdb

QUESTIONS = {
    "Which tag grows, and where?": """
        SELECT machine, tag, max(bytes) - min(bytes) AS grown, max(at_least) AS survivors,
               round((max(bytes) - min(bytes)) * 60000 / max(elapsed_ms)) AS per_minute
        FROM tags GROUP BY ALL HAVING grown > 0 ORDER BY grown DESC""",
    "Who allocated what grew?": """
        SELECT machine, stack, max(delta_bytes) AS grown, any_value(frames) AS frames
        FROM stacks WHERE look = 'check' GROUP BY ALL HAVING grown > 0 ORDER BY grown DESC""",
    "What became of the blocks, and how is it known?": """
        SELECT machine, tag, verdict, evidence, count(*) AS blocks, sum(size) AS bytes
        FROM blocks JOIN (SELECT machine, max(elapsed_ms) AS elapsed_ms FROM blocks GROUP BY ALL) USING (machine, elapsed_ms)
        WHERE look = 'check' GROUP BY ALL ORDER BY bytes DESC LIMIT 8""",
    "Which stacks hold pool on more than one machine?": """
        SELECT stack, count(DISTINCT machine) AS machines, max(bytes) AS most
        FROM stacks WHERE stack IS NOT NULL GROUP BY ALL HAVING machines > 1 ORDER BY most DESC""",
}

for table in ("blocks", "stacks", "tags"):
    files = duckdb.read_parquet(f"{sys.argv[1]}/{table}/**/*.parquet", hive_partitioning=True)
    files.create_view(table)
for question, query in QUESTIONS.items():
    print(question)
    print(duckdb.sql(query))
