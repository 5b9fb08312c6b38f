#!/usr/bin/env bash
# Type-checks the program for macOS on a machine that has neither its SDK nor a compiler for its C: nothing is linked, so
# that two scripts which make empty files stand in for compiler and archiver.
#
#   packaging/check-macos.sh [TARGET]     aarch64-apple-darwin; needs `rustup target add TARGET`
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-aarch64-apple-darwin}
stand_in=$PWD/target/macos
mkdir -p "$stand_in"
cat > "$stand_in/cc" <<'SCRIPT'
#!/bin/sh
before=
for word in "$@"; do
    [ "$before" = -o ] && : > "$word"
    before=$word
done
exit 0
SCRIPT
cat > "$stand_in/ar" <<'SCRIPT'
#!/bin/sh
for word in "$@"; do case $word in *.a) : > "$word" ;; esac; done
SCRIPT
chmod +x "$stand_in/cc" "$stand_in/ar"
name=${target//-/_}
export "CC_$name=$stand_in/cc" "AR_$name=$stand_in/ar"
RUSTFLAGS="${RUSTFLAGS:-} -D warnings" cargo check --locked -p kdpool --target "$target"
