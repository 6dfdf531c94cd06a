# Start of a pod from a stock image: fetch ternfleet's static binary, check it, run it. Needs a shell and curl, nothing
# else. The arguments are ternfleet's own.
#   TERNFLEET_BINARY_URL, TERNFLEET_BINARY_SHA256   the binary, and what it must be
#   TERNFLEET_DIST_TOKEN                            sent along, when the coordinator itself serves the binary
#   TERNFLEET_START_LIMIT_MS                        from the start to a running worker; default 15 minutes
# A pod that cannot start costs money until somebody looks, so it terminates itself (TERNFLEET_END_MYSELF=runpod).
set -u
limit_s=$((${TERNFLEET_START_LIMIT_MS:-900000} / 1000))
begun_s=$(date +%s)
say() { echo "start: $*" >&2; }
give_up() {
  say "$*"
  if [ "${TERNFLEET_END_MYSELF:-exit}" = runpod ]; then
    # The key goes by standard input: command lines are seen by others.
    until printf 'header = "Authorization: Bearer %s"\n' "${RUNPOD_API_KEY:-}" | curl --config - --silent --show-error \
      --fail --max-time 30 --request DELETE "${TERNFLEET_RUNPOD_BASE:-https://api.runpod.io}/v2/pods/${RUNPOD_POD_ID:-}"
    do
      say "this pod cannot terminate itself and still costs money: terminate it by hand"
      sleep 30
    done
  fi
  exit 1
}
is_right() { echo "$TERNFLEET_BINARY_SHA256  $1" | sha256sum -c - >/dev/null 2>&1; }
[ -n "${TERNFLEET_BINARY_URL:-}" ] || give_up "TERNFLEET_BINARY_URL is not set"
[ -n "${TERNFLEET_BINARY_SHA256:-}" ] || give_up "TERNFLEET_BINARY_SHA256 is not set"
program=
for place in /usr/local/bin /opt /var/tmp "${HOME:-/root}" /tmp; do
  # It must be possible to write there, and to run what was written.
  probe="$place/.ternfleet-probe"
  if mkdir -p "$place" 2>/dev/null && printf '#!/bin/sh\nexit 0\n' 2>/dev/null >"$probe" && chmod 755 "$probe" && "$probe" 2>/dev/null
  then program="$place/ternfleet"; fi
  rm -f "$probe" 2>/dev/null
  [ -z "$program" ] || break
done
[ -n "$program" ] || give_up "no folder allows a program to be written and run"
until [ -f "$program" ] && is_right "$program"; do
  left_s=$((limit_s - $(date +%s) + begun_s))
  [ "$left_s" -gt 0 ] || give_up "the program was not downloaded within $limit_s s"
  if [ -n "${TERNFLEET_DIST_TOKEN:-}" ]; then header="Authorization: Bearer $TERNFLEET_DIST_TOKEN"; else header="Accept: */*"; fi
  # TLS of the image's own certificates; whatever comes is checked by its digest.
  if printf 'header = "%s"\n' "$header" | curl --config - --silent --show-error --fail --location --connect-timeout 20 \
    --max-time "$left_s" --retry 3 --output "$program.part" "$TERNFLEET_BINARY_URL"
  then
    is_right "$program.part" || { rm -f "$program.part"; give_up "the file from TERNFLEET_BINARY_URL does not match TERNFLEET_BINARY_SHA256"; }
    chmod 755 "$program.part" && mv "$program.part" "$program"
  else
    say "the program cannot be downloaded; retrying"
    sleep 5
  fi
done
say "running $program $*"
exec "$program" "$@"
