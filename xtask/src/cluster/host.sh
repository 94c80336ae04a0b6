#!/bin/sh
# First process of a host of the cluster: gives it file systems and a place among the control groups
# of its own, then waits, and reaps what is left to it. Started by host.rs in new mount, host name
# and process namespaces; when it ends, the kernel ends everything on the host and frees its mounts.
# usage: host.sh NAME FOLDER
set -eu
name=$1 folder=$2

if [ "${3-}" != grouped ]; then
    # What is mounted outside is not held here after it goes there.
    mount --make-rprivate /
    awk '$2 ~ "^/run/" { print $2 }' /proc/mounts | sort -r | while read -r point; do
        # Others take theirs away meanwhile.
        umount -l "$point" 2>/dev/null || :
    done
    # /proc is still that of outside, where this is our id.
    read -r id _ </proc/self/stat
    echo "$id" >"$folder/id.partial"
    mount -t proc proc /proc
    # Shows the devices of this network namespace.
    mount -t sysfs sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir -p "/sys/fs/cgroup/causeway-cluster-$name"
    echo $$ >"/sys/fs/cgroup/causeway-cluster-$name/cgroup.procs"
    umount /sys/fs/cgroup
    exec unshare --cgroup sh "$0" "$name" "$folder" grouped
fi

mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs /run
for tree in etc opt var; do
    mkdir -p "$folder/upper/$tree" "$folder/work/$tree"
    mount -t overlay -o "lowerdir=/$tree,upperdir=$folder/upper/$tree,workdir=$folder/work/$tree" \
        overlay "/$tree"
done
# A container's root is an overlay, and the upper part of one cannot be on another.
mkdir -p /var/lib/containerd "$folder/containerd"
mount --bind "$folder/containerd" /var/lib/containerd
# What the kubelet would otherwise set, for the whole machine.
while read -r file value; do
    mkdir -p "$folder/sysctl"
    stand_in="$folder/sysctl/${file##*/}"
    echo "$value" >"$stand_in"
    mount --bind "$stand_in" "/proc/sys/$file"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END
# Volumes that the kubelet mounts are seen in containers.
mount --make-rshared /
hostname "$name"
mv "$folder/id.partial" "$folder/id"

while :; do
    sleep 86400 &
    wait $! || :
done
