#!/bin/busybox sh
# First process of a guest: mounts, modules, then each test executable. What counts is what is
# said on the serial line: how each executable ended, and that this script came to its end.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in /modules/*.ko; do
    insmod "$module" || echo "causeway-guest: module $module refused"
done
echo 1 >/proc/sys/net/core/bpf_jit_enable
ip link set lo up
# Before 5.11 maps count against this limit.
ulimit -l unlimited
ulimit -n 65536

echo "causeway-guest: kernel $(uname -r)"
/tests/programs
echo "causeway-guest: programs ended with $?"
if [ -x /tests/datapath ]; then
    /tests/datapath kernel:: --skip host:: --test-threads=1 --color=never
    echo "causeway-guest: datapath ended with $?"
fi
echo "causeway-guest: end"
poweroff -f
