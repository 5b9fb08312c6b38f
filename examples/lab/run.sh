#!/usr/bin/env bash
# A lab of four fake targets, one of which leaks: looks at each of them become Parquet files, and one question goes to all.
#
#   cargo build && python3 -m pip install duckdb && examples/lab/run.sh
#
# KDPOOL names another binary, PYTHON a Python that has duckdb. The files stay in LAB if that is set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kdpool=${KDPOOL:-$here/../../target/debug/kdpool}
lab=${LAB:-$(mktemp -d)}
trap 'kill $(jobs -p) 2>/dev/null || true; [ -n "${LAB:-}" ] || rm -rf "$lab"' EXIT

# Starts a fake target and says what attaches to it.
target() {
    local machine=$1
    shift
    "$kdpool" fake --tcp 127.0.0.1:0 --store "$lab/symbols" "$@" >"$lab/$machine.log" &
    until connection=$(grep -o 'com:[^ ]*' "$lab/$machine.log"); do sleep 0.1; done
}

watch() {
    target "$@"
    "$kdpool" leak --tag Leak --every 500ms --times 4 --parquet "$lab/looks" --machine "$1" -k "$connection" \
        -y "$lab/symbols" >"$lab/$1.txt"
}

mkdir -p "$lab"
watch build-01
watch build-02 --leak-every 100
watch build-03 --churn
# Of this one a script remembers all large allocations.
target build-04 --arch x86-heap --seed 4
look="-parquet $lab/looks -machine build-04"
"$kdpool" --bonc -k "$connection" -y "$lab/symbols" \
    -c "!leak mark all $look; g; .sleep 0n1000; .break; !leak check all $look; q" >"$lab/build-04.txt"
"${PYTHON:-python3}" "$here/query.py" "$lab/looks"
