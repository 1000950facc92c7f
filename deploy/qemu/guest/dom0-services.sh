# What a dom0 starts at boot, and the two disks of this image for the domUs; sourced.
fail() {
  echo "vmsg: $*"
  return 1
}

start_services() {
  xenstored --pid-file /run/xen/xenstored.pid || fail 'xenstored does not start' || return
  tries=0
  until xenstore-read / >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || fail 'xenstored does not answer' || return
    sleep 0.05
  done
  xen-init-dom0 >/dev/null || fail 'xen-init-dom0 failed' || return
  xenconsoled --log=guest --log-dir=/var/log/xen/console || fail 'xenconsoled does not start' || return
  insmod /usr/lib/xen-modules/loop.ko
  # Without persistent grants, so that what a report of Xen lists are those of the devices under test.
  insmod /usr/lib/xen-modules/xen-blkback.ko feature_persistent=0
  # Never the virtio disks themselves: their DMA cannot reach granted pages.
  losetup -r /dev/loop0 /dev/vda && losetup -r /dev/loop1 /dev/vdb || fail 'there are no loop devices'
}
