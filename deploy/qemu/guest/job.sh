# dom0 runs the script on its third disk; what it prints goes to the port "show".
. /app/deploy/qemu/guest/dom0-services.sh

port() {
  for directory in /sys/class/virtio-ports/*; do
    if [ "$(cat "$directory/name")" = "$1" ]; then
      mkdir -p /dev/virtio-ports
      ln -s "/dev/${directory##*/}" "/dev/virtio-ports/$1"
    fi
  done
}

# A sign of life on the serial line: a test may take long and say nothing.
beat() {
  while sleep 20; do echo "vmsg: dom0 is up for $(cut -d ' ' -f 1 /proc/uptime) s"; done
}

hostname dom0
port show
port tap
start_services || exit 1
beat &
cp /dev/vdc /run/job
exec 3>/dev/virtio-ports/show
echo '@vmsg ready' >&3
cd /app || exit 1
sh /run/job >&3
status=$?
if [ $status -ne 0 ]; then
  echo "vmsg: the job ended with status $status; what is left:"
  xl list
  xenstore-ls -f /local/domain | head -n 200
  xl dmesg | tail -n 40
fi
echo "@vmsg exit $status" >&3
exec 3>&-
