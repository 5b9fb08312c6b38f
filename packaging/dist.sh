#!/usr/bin/env bash
# Makes target/dist/kdpool-VERSION-TARGET.tar.gz: program, licences, manual pages, completions, tags, schemas; where
# cargo-deb and cargo-cyclonedx are installed also the .deb and the bill of materials. The same commit and compiler give
# the same bytes: paths are cut from the program, and the archive has one time, one owner and one mode.
#
#   packaging/dist.sh [TARGET]            builds for TARGET (this machine's); pages come from a kdpool that runs here
#   packaging/dist.sh --program FILE      packs a program that was built already, for this machine
#   DIST=FOLDER                           instead of target/dist
set -euo pipefail
# What is copied has the same mode whoever copies it.
umask 022
here=$PWD
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
target=$host
if [ "${1:-}" = --program ]; then
    program=$(cd "$here" && realpath "$2")
    runs=$program
else
    target=${1:-$host}
    export RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$PWD=kdpool --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
    cargo build --release --locked -p kdpool --target "$target"
    [ "$target" = "$host" ] || cargo build --release --locked -p kdpool --target "$host"
    built=${CARGO_TARGET_DIR:-target}
    runs=$built/$host/release/kdpool
    program=$built/$target/release/kdpool
    # Names that are not stripped, or a part built for speed by mistake, show here (docs/releasing.md has the size).
    if [ "$target" = x86_64-unknown-linux-gnu ] && [ "$(wc -c < "$program")" -ge 20000000 ]; then
        echo "$program has $(wc -c < "$program") bytes; 20 MB were promised" >&2
        exit 1
    fi
fi
exe=; case $target in *windows*) exe=.exe; [ "${1:-}" = --program ] || program=$program$exe ;; esac

dist=${DIST:-target/dist}
name=kdpool-$version-$target
folder=$dist/$name
rm -rf "$folder"
mkdir -p "$folder/man" "$folder/completions" "$folder/schemas"
cp "$program" "$folder/kdpool$exe"
cp LICENSE README.md CHANGELOG.md "$folder/"
cp crates/kd-fake/data/README.md "$folder/LICENSE-tables.md"
# Beside the program it is read at every start: lines that are added say what one's own tags are.
cp crates/nt-pool/src/pooltag.txt "$folder/"
"$runs" man "$folder/man"
"$runs" schemas "$folder/schemas"
for shell in bash zsh fish powershell; do
    "$runs" completions "$shell" > "$folder/completions/kdpool.$shell"
done
tar --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" \
    -C "$dist" -c "$name" | gzip -n > "$folder.tar.gz"
made=("$name.tar.gz")
[ -z "${KDPOOL_ONLY_TARBALL:-}" ] || exit 0

if cargo deb --version > /dev/null 2>&1 && [ "$target" = "$host" ] && [ "$(uname -s)" = Linux ]; then
    # Where the manifest's assets say that they are (crates/kdpool/Cargo.toml).
    rm -rf dist/deb
    mkdir -p dist/deb
    cp -R "$folder/." dist/deb/
    cargo deb -p kdpool --no-build --no-strip --output "$dist/$name.deb"
    made+=("$name.deb")
else
    echo "no .deb: cargo-deb is not installed, or this is not its platform" >&2
fi
if cargo cyclonedx --version > /dev/null 2>&1; then
    cargo cyclonedx --format json --target "$target" --manifest-path crates/kdpool/Cargo.toml --override-filename kdpool
    # References to our own crates have the folder that they were built in.
    sed "s|file://$PWD|file:///kdpool|g" crates/kdpool/kdpool.json > "$dist/$name.cdx.json"
    # One for each member of the workspace is written; this one names them all.
    find crates examples fuzz -name kdpool.json -not -path '*/schemas/*' -delete
    made+=("$name.cdx.json")
else
    echo "no bill of materials: cargo-cyclonedx is not installed" >&2
fi
(cd "$dist" && sha256sum "${made[@]}" | tee "$name.sha256")
