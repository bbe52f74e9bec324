#!/bin/sh
# Build the launcher of bundles for every architecture: bin/launcher.ARCH.
#
#     build.sh SOURCES [FOLDER]
#
# SOURCES is a folder with the archives that sources.sha256 names; fetch.py brings them from a mirror of Debian. The
# compiler is the wheel that pyproject.toml pins, so that anybody gets the same bytes (tests/test_launcher.py compares
# them). PYTHON names the interpreter that has it; the second argument names another folder for the results.
set -eu
sources=$(cd "$1" && pwd)
cd "$(dirname "$0")"
out=$(mkdir -p "${2:-bin}" && cd "${2:-bin}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
while read -r sum path; do
    echo "$sum  $sources/${path##*/}" | sha256sum --check --quiet --strict
    tar --extract --gzip --file "$sources/${path##*/}" --directory "$work"
done <sources.sha256
cp ./*.c ./*.h "$work"
mkdir "$work/launcher" && mv "$work"/*.[ch] "$work/launcher"
cp ../sha256.c ../sha256.h "$work"
cd "$work/launcher" # so that no path of this machine gets into the programs
deflate=../libdeflate-1.14
sodium=../libsodium-1.0.18/src/libsodium
cc() { # TARGET ARGUMENT...
    target=$1
    shift
    "${PYTHON:-python3}" -m ziglang cc -target "$target" -static -ffunction-sections -fdata-sections \
        -fno-asynchronous-unwind-tables -fno-unwind-tables "$@"
}
build() { # ARCH TARGET
    case $1 in armhf) wide= ;; *) wide=-DHAVE_TI_MODE ;; esac # 128-bit integers, which libsodium's configure looks for
    # Unpacking takes its time for libdeflate; a signature is verified once, in a tenth of a millisecond.
    cc "$2" -O2 -c -I$deflate -o deflate.o deflate.c
    cc "$2" -Os -c -DCONFIGURED=1 $wide -I$sodium/include/sodium -I$sodium/include -I$sodium -o sodium.o sodium.c
    cc "$2" -Os -std=c11 -Wall -Wextra -Werror -DSHA256_BY_CPU -I$deflate -I$sodium/include/sodium \
        -s -Wl,--gc-sections -Wl,--build-id=none -o "$out/launcher.$1" \
        launcher.c image.c pieces.c untar.c kept.c root.c sha256_by_cpu.c ../sha256.c ./*.o
    rm ./*.o
}
build x86_64 x86_64-linux-musl
build aarch64 aarch64-linux-musl
build armhf arm-linux-musleabihf
build riscv64 riscv64-linux-musl
