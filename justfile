# Recipes; `just` lists them. Each is a cargo line that can be typed without just as well.

[private]
default:
    @just --list

# The demonstration, or any other arguments
run *arguments='demo':
    cargo run --release -p kdpool -- {{arguments}}

# All tests
test *arguments:
    cargo test --workspace {{arguments}}

# What CI runs
check:
    .ci/run

# The crates' documentation, and the book's links and commands
docs:
    cargo doc --workspace --no-deps
    cargo test -p kdpool --test docs

# Write the golden transcripts and the recorded screen anew
golden:
    KDPOOL_BLESS=1 cargo test -p kdpool --test transcripts --test screen

# Write docs/schemas anew, from the types that are written
schemas:
    cargo run -p kdpool -- schemas docs/schemas

# One fuzz target for a while, or all of them, with a row of figures for each: just fuzz 60 deframer
fuzz seconds='60' *targets:
    fuzz/run.sh {{seconds}} {{targets}}

# What questions cost on the wire, and how fast pool and symbols are read
bench:
    cargo bench -p kdpool --bench wire_cost
    cargo bench -p nt-pool --bench pool_bench
    cargo bench -p kd-shell --bench symbols_bench

# A tarball for this machine: program, licence, manual, completions (docs/releasing.md)
dist:
    packaging/dist.sh
