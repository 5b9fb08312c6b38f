#!/usr/bin/env bash
# usage: fuzz/run.sh SECONDS [TARGET...]   each target for so long, with coverage feedback, on one core. What reaches
# something new is kept in fuzz/seeds/TARGET as few small inputs; a row is printed for each target: executions, executions
# a second, edges that all inputs reach, and those of them that the kept inputs reach; findings. A target that a finding
# ends goes on without it until its time is over.
# Needs `cargo install cargo-fuzz --locked`; the stable toolchain will do. KDPOOL_FUZZ_WORK keeps corpus and logs in a folder:
# what runs one after the other is added up. KDPOOL_FUZZ_PROGRAMS has programs that were built before.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:?seconds a target}; shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cd fuzz_targets && ls | sed 's/\.rs$//')

# Most inputs kept for a target, and the largest of them.
most=40 largest=+2k
programs=${KDPOOL_FUZZ_PROGRAMS:-}
if [ -z "$programs" ]; then
    RUSTC_BOOTSTRAP=1 cargo fuzz build --sanitizer none --target-dir ../target/fuzz >&2
    programs=../target/fuzz/$(rustc -vV | sed -n 's/^host: //p')/release
fi
work=${KDPOOL_FUZZ_WORK:-$(mktemp -d)}
mkdir -p artifacts "$work"

number() { # NAME LOG...: the sum of a statistic
    sed -n "s/^stat::$1: *//p" "${@:2}" | awk '{sum += $1} END {print sum + 0}'
}
number_of_seconds() { # LOG...: how long they ran, from what they say of their rate
    sed -n 's/^stat::\(number_of_executed_units\|average_exec_per_sec\): *//p' "$@" |
        awk 'NR % 2 {done = $1; next} $1 > 0 {sum += done / $1} END {print int(sum) + 1}'
}
edges() { # FOLDER...: what these inputs reach
    "$programs/$target" "$@" -runs=0 2>&1 | grep -o 'cov: [0-9]*' | tail -1 | cut -d' ' -f2
}

echo "| target | executions | a second | edges | with the kept inputs | findings |"
echo "|---|---|---|---|---|---|"
for target in "${targets[@]}"; do
    corpus=$work/$target
    mkdir -p "$corpus" "seeds/$target"
    options=(-timeout=20 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1)
    [ ! -f "dictionaries/$target.dict" ] || options+=("-dict=dictionaries/$target.dict")
    options+=("-artifact_prefix=artifacts/$target-")
    before=$(find artifacts -name "$target-*" | wc -l)
    end=$((SECONDS + seconds))
    for round in {1..20}; do
        [ $SECONDS -lt $end ] || break
        "$programs/$target" "$corpus" "seeds/$target" "${options[@]}" -max_total_time=$((end - SECONDS)) \
            >"$work/$target.$(date +%s).$round.log" 2>&1 || true
    done
    executions=$(number number_of_executed_units "$work/$target".*.log)
    took=$(number_of_seconds "$work/$target".*.log)
    found=$(($(find artifacts -name "$target-*" | wc -l) - before))
    # What reaches as much as all that was found, small and few.
    small=$(mktemp -d)
    "$programs/$target" -set_cover_merge=1 "$small" "seeds/$target" "$corpus" >/dev/null 2>&1 || true
    find "seeds/$target" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
    # Those that are there under a name of their own keep it; others are called by their hash.
    sha1sum "seeds/$target"/* | cut -d' ' -f1 >"$small.known"
    find "$small" -type f ! -size "$largest" -printf '%s %f\n' | sort -n | cut -d' ' -f2 |
        grep -vxFf "$small.known" | head -n "$most" | sed "s|^|$small/|" | xargs -r cp -t "seeds/$target/" || true
    rm -f "$small.known"
    rm -rf "$small"
    echo "| \`$target\` | $executions | $((executions / took)) | $(edges "$corpus" "seeds/$target") |" \
        "$(edges "seeds/$target") | $found |"
done
