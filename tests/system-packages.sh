#!/bin/sh
# Install the system packages some tests need: real systemd hosts, a browser, shells that users log in with.
# Only what is missing, only as root on Debian or Ubuntu; elsewhere those tests say they are skipped.
set -eu

if [ "$(id -u)" != 0 ] || [ ! -e /etc/debian_version ] || ! command -v apt-get >/dev/null; then
    echo "system packages for tests: nothing to do here (needs root on Debian or Ubuntu)"
    exit 0
fi

missing=
for package in openssh-client openssh-server systemd-container debootstrap debian-archive-keyring gpgv \
    iproute2 chromium rsync strace zsh fish busybox tcsh ksh krb5-kdc krb5-admin-server krb5-user; do
    # Ubuntu's chromium package only wraps a snap, which a test machine can't run.
    [ "$package" = chromium ] && grep -qi '^ID=ubuntu' /etc/os-release && continue
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "system packages for tests: installing$missing"
# A server package must not start or enable a daemon on this machine: tests start their own.
policy=/usr/sbin/policy-rc.d
case "$missing" in
*openssh-server* | *krb5-*)
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    ;;
esac

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# shellcheck disable=SC2086 # a list of words
if { apt-get update && apt-get install --yes --no-install-recommends $missing; } >"$log" 2>&1; then
    case "$missing" in
    *openssh-server*) systemctl disable ssh.service ssh.socket >/dev/null 2>&1 || true ;;
    esac
    rm -f "$log"
    exit 0
fi
echo "system packages for tests: could not install$missing (offline?); log: $log" >&2
tail -n 3 "$log" >&2
# Tests that need them skip with a line that says so; in CI nothing may be skipped.
case "${CI:-}" in true | 1) exit 1 ;; esac
