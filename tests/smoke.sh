#!/usr/bin/env bash
# Runs the built programs as a user would: separate processes, a real socket, real files.
#
#   tests/smoke.sh [FOLDER WITH THE BINARIES, default target/release]
set -euo pipefail

bin=$(cd "${1:-target/release}" && pwd)
dir=$(mktemp -d)
pids=()
step="start"

cleanup() {
    status=$?
    if [ "$status" -ne 0 ]; then
        echo "smoke: FAILED at: $step"
        for log in "$dir"/*.log; do
            [ -s "$log" ] && sed "s|^|  ${log##*/}: |" "$log"
        done
    fi
    # First politely; what is still there two seconds later has failed anyway.
    kill "${pids[@]}" 2>/dev/null || true
    for pid in "${pids[@]}"; do
        for _ in $(seq 40); do
            has_ended "$pid" && break
            sleep 0.05
        done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$dir"
    exit "$status"
}
trap cleanup EXIT

step() {
    step=$1
    echo "smoke: $step"
}

fail() {
    echo "smoke: $1"
    exit 1
}

# until_true WHAT COMMAND...: polls, for 10 seconds at most.
until_true() {
    local what=$1
    shift
    for _ in $(seq 200); do
        if "$@"; then
            return
        fi
        sleep 0.05
    done
    fail "waited 10 s for $what"
}

has_ended() {
    ! kill -0 "$1" 2>/dev/null
}

# Every call in the foreground is bounded: a hang is a failure, not a wait.
ipc() {
    timeout 30 "$bin/lapce-ipc" "$@"
}

shm_files() {
    find /dev/shm -mindepth 1 -user "$(id -u)" | sort
}

# Nothing of the user's own set-up takes part.
for name in $(compgen -e LAPCE_IPC || true); do
    unset "$name"
done
export XDG_CONFIG_HOME="$dir/config" XDG_RUNTIME_DIR="$dir/run"
export LAPCE_IPC_SOCKET="$dir/broker.sock"
shm_files >"$dir/shm.before"

step "the broker starts"
"$bin/ipc_server_main" --socket "$LAPCE_IPC_SOCKET" >"$dir/broker.log" 2>&1 &
broker=$!
pids+=("$broker")
listens_or_ended() {
    [ -S "$LAPCE_IPC_SOCKET" ] || has_ended "$broker"
}
until_true "the socket" listens_or_ended
if has_ended "$broker"; then
    fail "the broker stopped at once"
fi

step "request echo answers"
[ "$(ipc request echo hi 2>"$dir/request.log")" = hi ] || fail "expected: hi"

step "request to nobody exits 69"
code=0
ipc request nobody hi >"$dir/nobody.log" 2>&1 || code=$?
[ "$code" -eq 69 ] || fail "expected exit code 69, got $code"

step "publish a word and a file of 5 MiB"
head -c 5242880 /dev/urandom >"$dir/file"
"$bin/lapce-ipc" sub --count 2 --raw 'lapce.>' >"$dir/received" 2>"$dir/sub.log" &
sub=$!
pids+=("$sub")
until_true "the subscription" grep -q subscribed "$dir/sub.log"
ipc pub lapce.ai.completion hello 2>"$dir/pub.log"
ipc pub lapce.ai.completion "@$dir/file" 2>>"$dir/pub.log"
until_true "the subscriber to have its two messages" has_ended "$sub"
wait "$sub" || fail "the subscriber exited $?"
sent=$({ printf hello && cat "$dir/file"; } | sha256sum)
received=$(sha256sum <"$dir/received")
[ "$sent" = "$received" ] || fail "sent and received differ ($(wc -c <"$dir/received") bytes received)"

step "two responders share 200 requests"
for number in 1 2; do
    "$bin/lapce-ipc" reply upper -- tr a-z A-Z >"$dir/reply$number.log" 2>&1 &
    pids+=("$!")
    until_true "responder $number" grep -q serving "$dir/reply$number.log"
done
mkdir "$dir/replies"
seq 200 | xargs -P 4 -I{} timeout 30 sh -c '"$0" request upper "request {}" >"$1/{}"' "$bin/lapce-ipc" "$dir/replies" \
    2>"$dir/requests.log" || fail "a request failed"
for number in $(seq 200); do
    reply=$(cat "$dir/replies/$number")
    [ "$reply" = "REQUEST $number" ] || fail "request $number was answered: $reply"
done

step "status answers in JSON"
ipc status --json >"$dir/status" 2>"$dir/status.log"
[ "$(tr -d '[:space:]' <"$dir/status" | head -c 1)" = "{" ] || fail "expected an object: $(head -c 200 "$dir/status")"

step "SIGTERM ends the broker in order, with clients still there"
kill -TERM "$broker"
until_true "the broker to end" has_ended "$broker"
code=0
wait "$broker" || code=$?
[ "$code" -eq 0 ] || fail "the broker exited $code"
[ ! -e "$LAPCE_IPC_SOCKET" ] || fail "the socket is still there"

step "nothing is left in /dev/shm"
shm_files >"$dir/shm.after"
left=$(comm -13 "$dir/shm.before" "$dir/shm.after")
[ -z "$left" ] || fail "left: $left"

echo "smoke: ok"
