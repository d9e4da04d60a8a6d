#!/usr/bin/env bash
# rustc as run.sh has cargo call it: with LLVM's coverage for the service and the
# targets, and for nothing else. So their dependencies are those that the
# service's own debug build has compiled already.
set -euo pipefail
rustc=$1
shift
case "${CARGO_PKG_NAME:-} $*" in
*"--crate-name build_script_"*) ;;
"workflow-secrets "* | "workflow-secrets-fuzz "*)
    # What `cargo fuzz run --sanitizer none` passes; it needs no nightly
    # compiler. There is no unsafe code here for a sanitizer to watch.
    set -- "$@" -Cpasses=sancov-module -Cdebug-assertions -Coverflow-checks \
        -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
esac
exec "$rustc" "$@"
