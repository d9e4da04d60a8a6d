#!/bin/sh
# Makes a certificate authority for development, a server certificate and one
# client certificate per role, each client with its SPIFFE id as the only URI.
#
#   dev-certs.sh DIRECTORY [HOST...]
#
# HOSTs are further names of the server beside localhost and 127.0.0.1. What is
# there and valid for another day is kept. CERT_OWNER (uid:gid) gets the files.
# Not for production: the authority's key lies beside the certificates.
set -eu

[ $# -ge 1 ] || { echo "usage: dev-certs.sh DIRECTORY [HOST...]" >&2; exit 64; }
directory=$1
shift
days=30
trust_domain=spiffe://dev.example

umask 077
mkdir -p "$directory"
cd "$directory"

current() {
    [ -f "$1.key" ] && openssl x509 -in "$1.crt" -noout -checkend 86400 >/dev/null 2>&1
}

# issue NAME SUBJECT_ALT_NAMES EXTENDED_KEY_USAGE
issue() {
    current "$1" && openssl verify -CAfile ca.crt "$1.crt" >/dev/null 2>&1 && return 0
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc \
        -keyout "$1.key" -out "$1.csr" -subj "/CN=$1" 2>/dev/null
    cat >"$1.ext" <<EXT
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = $3
subjectAltName = $2
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
EXT
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -days "$days" -sha256 \
        -set_serial "0x$(openssl rand -hex 16 | sed 's/^./4/')" -extfile "$1.ext" -out "$1.crt" 2>/dev/null
    rm -f "$1.csr" "$1.ext"
    echo "made $directory/$1.crt ($2)"
}

if ! current ca; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days "$days" -sha256 \
        -keyout ca.key -out ca.crt -subj "/CN=workflow-secrets development CA" \
        -addext "basicConstraints = critical, CA:TRUE, pathlen:0" \
        -addext "keyUsage = critical, keyCertSign, cRLSign" 2>/dev/null
    echo "made $directory/ca.crt"
fi

names="DNS:localhost, IP:127.0.0.1"
for host in "$@"; do
    names="$names, DNS:$host"
done
issue server "$names" serverAuth
for role in executor platform integration operator; do
    issue "$role" "URI:$trust_domain/$role" clientAuth
done

if [ -n "${CERT_OWNER:-}" ]; then
    chown -R "$CERT_OWNER" .
fi
