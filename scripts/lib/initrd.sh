# shellcheck shell=bash
# Initial RAM disks of busybox and some kernel modules: the same recipe for L1 and for guests. Needs base.sh, packages.sh, kernel.sh.

# initrd_tree DIR KERNEL MODULE...: lays out busybox with all its applet names, /lib/modules/*.ko and their order in /lib/modules/order.
initrd_tree() {
    local dir=$1 kernel=$2 applet; shift 2
    packages_need busybox-static kmod xz-utils
    mkdir -p "$dir"/{bin,dev,proc,sys,run,tmp,etc,root,mnt,newroot,lib/modules}
    cp /bin/busybox "$dir/bin/busybox"
    for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$dir/bin/$applet"; done
    ln -s bin "$dir/sbin"
    _initrd_modules "$dir" "$kernel" order "$@"
}

# initrd_extra DIR KERNEL SET MODULE...: more modules, listed in /lib/modules/order-SET, for an init that loads them only when asked to.
initrd_extra() { local dir=$1 kernel=$2 set=$3; shift 3; _initrd_modules "$dir" "$kernel" "order-$set" "$@"; }

_initrd_modules() {
    local dir=$1/lib/modules kernel=$2 order=$3 file name; shift 3
    : >"$dir/$order"
    kernel_modules "$kernel" "$@" | while read -r file; do
        name=$(basename "${file%.xz}")
        # What the first list has loaded is loaded.
        if [ "$order" != order ] && grep -qxF "$name" "$dir/order"; then continue; fi
        # busybox's insmod reads plain modules only; newer kernels ship them compressed.
        case $file in *.xz) xz -dc "$file" >"$dir/$name" ;; *) cp "$file" "$dir/$name" ;; esac
        printf '%s\n' "$name" >>"$dir/$order"
    done
}

# initrd_pack DIR FILE: sorted names, no owners, no times: the same tree gives the same bytes. LZ4, for it unpacks fastest at boot.
initrd_pack() {
    packages_need cpio lz4
    find "$1" -exec touch -h -d @0 {} +
    (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --quiet -0 -o -H newc -R 0:0 --reproducible) | lz4 -q -l -9 >"$2.part"
    mv "$2.part" "$2"
}
