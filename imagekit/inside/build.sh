#!/bin/sh
# Build the static programs that go into guests, for every architecture: bin/NAME.ARCH.
#
# The compiler is the wheel that pyproject.toml pins, so that anybody gets the same bytes (tests/test_inside.py compares
# them). It makes its C library anew for every other choice of flags: these are the launcher's and the updater's, too.
# PYTHON names the interpreter that has it; the first argument names another folder for the results.
set -eu
cd "$(dirname "$0")"
out=${1:-bin}
build() { # NAME SOURCE...
    name=$1
    shift
    for arch in x86_64 aarch64; do
        "${PYTHON:-python3}" -m ziglang cc -target "$arch-linux-musl" -std=c99 -Os -static -s -Wall -Wextra -Werror \
            -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables -fno-unwind-tables \
            -Wl,--gc-sections -Wl,--build-id=none -o "$out/$name.$arch" "$@"
    done
}
build agent agent.c builtin.c bulk.c command.c follow.c health.c renew.c sha256.c tail.c \
    terminal.c wait.c wire.c
build boot boot.c changes.c device.c early.c event.c lease.c network.c prepare.c ready.c root.c run.c service.c \
    stage.c table.c
build attest attest.c attestor.c event.c serve.c sealed/commands.c sealed/tpm.c
build sealed sealed/sealed.c sealed/commands.c sealed/luks.c sealed/mapper.c sealed/nv.c sealed/policy.c \
    sealed/seal.c sealed/secret.c sealed/settings.c sealed/tpm.c sealed/verity.c changes.c device.c event.c prepare.c \
    root.c sha256.c table.c
