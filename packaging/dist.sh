#!/usr/bin/env bash
# Makes target/dist/kdpool-VERSION-TARGET.tar.gz: program, licences, manual pages, completions. The same commit and
# compiler give the same bytes: paths are cut from the program, and the archive has one time and one owner.
# With a target's name it builds for that target, and needs a kdpool that runs here for pages and completions.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
target=${1:-$host}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$PWD=kdpool --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
cargo build --release --locked -p kdpool --target "$target"
[ "$target" = "$host" ] || cargo build --release --locked -p kdpool --target "$host"
runs=target/$host/release/kdpool
exe=; case $target in *windows*) exe=.exe ;; esac
name=kdpool-$version-$target
folder=target/dist/$name
rm -rf "$folder"
mkdir -p "$folder/man" "$folder/completions"
cp "target/$target/release/kdpool$exe" LICENSE README.md CHANGELOG.md "$folder/"
cp crates/kd-fake/data/README.md "$folder/LICENSE-tables.md"
"$runs" man "$folder/man"
for shell in bash zsh fish powershell; do
    "$runs" completions "$shell" > "$folder/completions/kdpool.$shell"
done
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
    -C target/dist -c "$name" | gzip -n > "$folder.tar.gz"
(cd target/dist && sha256sum "$name.tar.gz" | tee "$name.tar.gz.sha256")
