# dom0 for a person: everything started, a prompt on the console, the end of the machine with its last shell.
. /app/deploy/qemu/guest/dom0-services.sh
for word in $(cat /proc/cmdline); do
  case $word in
    vmsg.rows=*) rows=${word#*=} ;;
    vmsg.columns=*) columns=${word#*=} ;;
    TERM=*) export TERM="${word#*=}" ;;
  esac
done
hostname dom0
start_services || sleep 2
cp /app/deploy/qemu/guest/vm1.cfg /app/deploy/qemu/guest/vm2.cfg /etc/xen/
mkdir -p /etc/vmsg /var/lib/vmsg-images
cp /app/deploy/vmsg.json /etc/vmsg/
truncate -s 64M /var/lib/vmsg-images/vm1.img
vmsg serve --config /etc/vmsg/vmsg.json >/var/log/vmsg.log 2>&1 &
echo 'vmsg: the service starts'
tries=0
until [ -S /run/vmsg/api.sock ] || [ $tries -ge 300 ]; do
  tries=$((tries + 1))
  sleep 0.2
done
echo 0 >/proc/sys/kernel/printk
stty rows "${rows:-24}" cols "${columns:-80}" </dev/hvc0
cat /app/deploy/qemu/guest/welcome
setsid cttyhack sh -l </dev/hvc0 >/dev/hvc0 2>&1
