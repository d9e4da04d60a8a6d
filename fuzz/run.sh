#!/usr/bin/env bash
# Fuzzes every target for a while, guided by coverage, on stable Rust.
#
#   fuzz/run.sh                   each target, FUZZ_SECONDS long (default 14)
#   fuzz/run.sh TARGET ARGS...    one target, with arguments to libFuzzer
#
# A target is a file in src/bin/, its first inputs are those in seeds/TARGET.
# Needs Rust and a C++ compiler. What a run finds worth keeping stays under
# target/; an input that fails is left in target/artifacts and named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Coverage comes in by rustc.sh. With the service's own target directory, what
# they both depend on is compiled once.
unset CARGO_ENCODED_RUSTFLAGS RUSTFLAGS CARGO_BUILD_TARGET
export RUSTC_WRAPPER=$PWD/rustc.sh
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../target}
cargo build --locked --quiet
# Logs are opened before any target runs.
mkdir -p target

fuzz() {
    local target=$1
    shift
    mkdir -p "target/corpus/$target" target/artifacts
    "$CARGO_TARGET_DIR/debug/$target" -timeout=60 -rss_limit_mb=1024 \
        -artifact_prefix="target/artifacts/$target-" -dict=dictionary "$@" \
        "target/corpus/$target" "seeds/$target"
}

if [[ $# -gt 0 ]]; then
    fuzz "$@"
    exit
fi
for source in src/bin/*.rs; do
    target=$(basename "$source" .rs)
    log=target/$target.log
    if ! fuzz "$target" -max_total_time="${FUZZ_SECONDS:-14}" >"$log" 2>&1; then
        tail -40 "$log" >&2
        echo "fuzz/run.sh: $target failed" >&2
        exit 1
    fi
    echo "$target: $(tail -1 "$log"); $(grep -o 'cov: [0-9]*' "$log" | tail -1)"
done
