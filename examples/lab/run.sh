#!/usr/bin/env bash
# A lab of three fake targets, one of which leaks: a watch of each writes Parquet files, and one question goes to all.
#
#   cargo build -p kdpool --features parquet && python3 -m pip install duckdb && examples/lab/run.sh
#
# KDPOOL names another binary, PYTHON a Python that has duckdb.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kdpool=${KDPOOL:-$here/../../target/debug/kdpool}
lab=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$lab"' EXIT
"$kdpool" fake --store "$lab/symbols"
port=52100
for machine in build-01 build-02 build-03; do
    port=$((port + 1))
    leaks=()
    [ "$machine" = build-02 ] && leaks=(--leak-every 100)
    "$kdpool" fake --tcp "127.0.0.1:$port" "${leaks[@]}" >"$lab/$machine.log" &
    sleep 1
    "$kdpool" leak --tag Leak --every 500ms --times 4 --parquet "$lab/looks" --machine "$machine" \
        -k "com:ipport=$port,port=127.0.0.1" -y "$lab/symbols" >"$lab/$machine.txt"
done
"${PYTHON:-python3}" "$here/query.py" "$lab/looks"
