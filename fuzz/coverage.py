#!/usr/bin/env python3
"""What of the readers the fuzz targets' inputs reach, beside what the crates' own tests reach.

usage: fuzz/coverage.py [CORPUS]     CORPUS: another folder than fuzz/seeds, with a folder for each target

Both are built with -C instrument-coverage, the workspace's crates only, and run without a fuzzer. Counted are regions, the
finest that LLVM counts: a piece of a function without a branch in it, by its place in the source. "Of the tests'" are the
regions that the tests reach and the inputs reach too. Needs llvm-profdata and llvm-cov of the compiler's own version
(`rustup component add llvm-tools`). KDPOOL_FUZZ_TESTS=FILE remembers there what the tests reach, and takes it from there;
KDPOOL_FUZZ_MISSED=1 lists the lines that only the tests reach.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Targets, and the files that they read with. Left out: what writes, and what asks a live session.
READERS = [
    ("deframer", ["kd-wire/src/packet.rs", "kd-wire/src/packet/"]),
    ("messages", ["kd-wire/src/message.rs", "kd-wire/src/message/"]),
    ("session, stream, kdnet", ["kd-wire/src/session/", "kd-wire/src/kdnet/"]),
    ("dissect", ["kd-wire/src/dissect.rs"]),
    ("capture", ["kd-link/src/pcap.rs"]),
    ("connection", ["kd-link/src/spec.rs"]),
    ("pdb", ["nt-symbols/src/pdb.rs", "nt-symbols/src/tpi.rs", "nt-symbols/src/names.rs"]),
    ("isf", ["nt-symbols/src/isf.rs"]),
    ("image, image_file", ["nt-symbols/src/image.rs", "nt-symbols/src/image_file.rs", "nt-symbols/src/exports.rs"]),
    ("cabinet", ["nt-symbols/src/cab.rs"]),
    ("symbol_path", ["nt-symbols/src/path.rs", "nt-symbols/src/glob.rs"]),
    ("pool_page, pool_machine", ["nt-pool/src/"]),
    ("big_pages", ["nt-pool/src/big_pages.rs"]),
    ("verifier_log", ["nt-pool/src/pool_log.rs", "nt-pool/src/ring.rs"]),
    ("pooltag", ["nt-pool/src/pooltag.rs"]),
    ("unwind", ["nt-unwind/src/"]),
    ("command_line", ["kd-shell/src/grammar/"]),
    ("script", ["kd-shell/src/shell/script.rs", "kd-shell/src/grammar/block.rs", "kd-shell/src/grammar/alias.rs"]),
    ("saved", ["nt-leaks/src/saved.rs", "nt-leaks/src/mark.rs", "nt-leaks/src/line.rs", "nt-leaks/src/report/"]),
]
LEFT_OUT = ["kd-wire/src/session/target.rs", "nt-leaks/src/report/parquet.rs"]
# The tests of these crates; of kd-shell those that need no target.
TESTS = [["-p", name] for name in ("kd-wire", "kd-link", "nt-symbols", "nt-pool", "nt-unwind", "nt-leaks")]
TESTS.append(["-p", "kd-shell", "--lib"])


def tool(name):
    host = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    host = next(line.split()[1] for line in host.splitlines() if line.startswith("host:"))
    root = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    own = pathlib.Path(root) / "lib/rustlib" / host / "bin" / name
    return str(own) if own.exists() else name


def programs(arguments, environment):
    """The test programs of these packages."""
    command = ["cargo", "test", "--no-run", "--message-format=json", *arguments]
    built = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    messages = (json.loads(line) for line in built.splitlines() if line.startswith("{"))
    return {message["executable"] for message in messages if message.get("executable") and message["profile"]["test"]}


def reached(name, arguments, filters, environment, work):
    """Regions that a run reaches, and all that there are: (file, place) -> count."""
    environment = environment | {"LLVM_PROFILE_FILE": str(work / f"{name}-%p-%8m.profraw")}
    found = set()
    for packages in arguments:
        found |= programs(packages, environment | {"LLVM_PROFILE_FILE": "/dev/null"})
        ran = subprocess.run(["cargo", "test", *packages, *filters], cwd=ROOT, env=environment, stdout=sys.stderr)
        if ran.returncode:
            print(f"{packages}: some tests failed; what they reached counts", file=sys.stderr)
    data = work / f"{name}.profdata"
    profiles = [str(path) for path in work.glob(f"{name}-*.profraw")]
    subprocess.run([tool("llvm-profdata"), "merge", "-sparse", "-o", data, *profiles], check=True)
    counts = {}
    for program in sorted(found):
        command = [tool("llvm-cov"), "export", "-skip-expansions", f"-instr-profile={data}", program]
        exported = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for function in json.loads(exported)["data"][0]["functions"]:
            files = function["filenames"]
            for line, column, end_line, end_column, count, file, _, kind in function["regions"]:
                if kind == 0 and files[file].startswith(str(ROOT / "crates")):
                    place = (files[file], line, column, end_line, end_column)
                    counts[place] = max(counts.get(place, 0), count)
    return counts


def tests_within(path):
    """Lines of modules of tests in a file."""
    lines = pathlib.Path(path).read_text().splitlines()
    inside, within = False, set()
    for number, line in enumerate(lines, 1):
        if line == "#[cfg(test)]":
            inside = True
        if inside:
            within.add(number)
            inside = not (line == "}" or line.startswith(("mod ", "pub(crate) mod ")) and line.endswith(";"))
    return within


def main():
    corpus = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "fuzz/seeds").resolve()
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        wrapper = work / "rustc"
        wrapper.write_text('#!/bin/sh\nexec "$@" -C instrument-coverage\n')
        wrapper.chmod(0o755)
        # The wrapper's name is part of what cargo remembers: the same each time.
        kept = ROOT / "target/coverage-rustc"
        kept.write_text(wrapper.read_text())
        kept.chmod(0o755)
        environment["RUSTC_WORKSPACE_WRAPPER"] = str(kept)
        fuzzed = environment | {"KDPOOL_FUZZ_CORPUS": str(corpus), "KDPOOL_FUZZ_CHANGES": "0"}
        inputs = reached("inputs", [["-p", "kdpool-fuzz", "--lib"]], ["every_target"], fuzzed, work)
        remembered = os.environ.get("KDPOOL_FUZZ_TESTS")
        if remembered and os.path.exists(remembered):
            tests = {tuple(place): count for place, count in json.loads(pathlib.Path(remembered).read_text())}
        else:
            tests = reached("tests", TESTS, ["--no-fail-fast"], environment, work)
            if remembered:
                pathlib.Path(remembered).write_text(json.dumps(list(tests.items())))
    excluded = {path: tests_within(path) for path in {place[0] for place in tests}}
    print("| targets | reached by the tests | by the inputs | of the tests' |")
    print("|---|---|---|---|")
    missed = {}
    for name, files in READERS:
        def of(counts):
            return {
                place
                for place, count in counts.items()
                if count
                and any(f"/crates/{file}" in place[0] for file in files)
                and not any(f"/crates/{file}" in place[0] for file in LEFT_OUT)
                and "/tests" not in place[0].split("/crates/")[1]
                and place[1] not in excluded.get(place[0], ())
            }

        by_tests, by_inputs = of(tests), of(inputs)
        share = 100 * len(by_tests & by_inputs) // max(len(by_tests), 1)
        print(f"| {name} | {len(by_tests)} | {len(by_inputs)} | {share} % |")
        for place in by_tests - by_inputs:
            missed.setdefault(place[0], []).append(place[1])
    if os.environ.get("KDPOOL_FUZZ_MISSED"):
        for path, lines in sorted(missed.items()):
            print(os.path.relpath(path, ROOT), *sorted(set(lines)), file=sys.stderr)


main()
