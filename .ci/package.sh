# Sourced by the commands of this folder.
# shellcheck shell=bash

# package PROGRAM PACKAGE: installs a Debian package, if its program is missing.
package() {
    if command -v "$1" >/dev/null; then
        return
    fi
    local root=()
    if [ "$(id -u)" != 0 ]; then
        root=(sudo)
    fi
    "${root[@]}" apt-get update -qq &&
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}
