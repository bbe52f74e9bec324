#!/bin/sh
# Build the program of updates for every architecture that has slots: ../bin/slots.ARCH.
#
#     build.sh SOURCES [FOLDER]
#
# SOURCES is a folder with the archives that ../launcher/sources.sha256 names; ../launcher/fetch.py brings them. What
# verifies a signature is the launcher's (sodium.c), the compiler the wheel that pyproject.toml pins, so that anybody
# gets the same bytes (tests/test_slots_build.py compares them). PYTHON names the interpreter that has it.
set -eu
sources=$(cd "$1" && pwd)
cd "$(dirname "$0")"
out=$(mkdir -p "${2:-../bin}" && cd "${2:-../bin}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
while read -r sum path; do
    case $path in *libsodium*) ;; *) continue ;; esac
    echo "$sum  $sources/${path##*/}" | sha256sum --check --quiet --strict
    tar --extract --gzip --file "$sources/${path##*/}" --directory "$work"
done <../launcher/sources.sha256
mkdir "$work/slots" && cp ./*.c ./*.h "$work/slots"
cp ../sha256.c ../sha256.h ../table.c ../event.c ../boot.h ../launcher/sodium.c "$work"
cd "$work/slots" # so that no path of this machine gets into the programs
sodium=../libsodium-1.0.18/src/libsodium
cc() { # ARCH ARGUMENT...
    arch=$1
    shift
    "${PYTHON:-python3}" -m ziglang cc -target "$arch-linux-musl" -static -Os -ffunction-sections -fdata-sections \
        -fno-asynchronous-unwind-tables -fno-unwind-tables "$@"
}
for arch in x86_64 aarch64; do
    cc "$arch" -c -DCONFIGURED=1 -DHAVE_TI_MODE -I$sodium/include/sodium -I$sodium/include -I$sodium -o sodium.o \
        ../sodium.c
    cc "$arch" -std=c99 -Wall -Wextra -Werror -I$sodium/include/sodium -s -Wl,--gc-sections -Wl,--build-id=none \
        -o "$out/slots.$arch" slots.c disk.c fat.c fatchange.c store.c update.c updatefile.c version.c watch.c \
        ../event.c ../sha256.c ../table.c sodium.o
done
