# A domU runs what dom0 writes to its xenstore node data/agent/run/<number>, many at once, and prints on its console
# `@<number>:` before each line of output and `@<number>=<status>` at the end. A signal's name written to
# data/agent/kill/<number> goes to everything that the command started.
agent=data/agent
state=/run/agent
mark=$(printf '\001')
newline='
'

say() {
  printf '%s\n' "$*"
}

# Output that does not end with a newline gets one: the mark stands on a line of its own, after an empty one if the
# output was complete.
relay() {
  held=0
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      '')
        [ $held -eq 0 ] || say "@$1:"
        held=1
        ;;
      "$mark"*)
        held=0
        say "@$1=${line#?}"
        ;;
      *)
        [ $held -eq 0 ] || say "@$1:"
        held=0
        say "@$1:$line"
        ;;
    esac
  done
}

run() {
  setsid sh -c "$(xenstore-read "$agent/run/$1")" </dev/null &
  echo $! >"$state/$1"
  wait $!
  printf '%s%s%s%s' "$newline" "$mark" $? "$newline"
}

begin() {
  [ -e "$state/$1" ] && return
  xenstore-exists "$agent/run/$1" || return
  : >"$state/$1"
  run "$1" 2>&1 | relay "$1" &
}

stop() {
  signal=$(xenstore-read "$agent/kill/$1") && kill -s "$signal" -- "-$(cat "$state/$1")"
}

handle() {
  case $1 in
    "$agent") for number in $(xenstore-list "$agent/run"); do begin "$number"; done ;;
    "$agent"/run/*) begin "${1##*/}" ;;
    "$agent"/kill/*) stop "${1##*/}" ;;
  esac
}

serve() {
  xenstore-watch "$agent" | while read -r path; do handle "$path" 2>/dev/null; done
}

hostname "$(xenstore-read name)"
mkdir -p $state
cd /app || exit 1
say '@ready'
case " $(cat /proc/cmdline) " in
  *' vmsg.shell '*)
    serve &
    cd /root && setsid cttyhack sh -l </dev/hvc0 >/dev/hvc0 2>&1
    ;;
  *)
    stty -opost -echo </dev/console
    serve
    ;;
esac
