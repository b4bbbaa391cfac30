// A guest without an operating system, for tests that must run on any /dev/kvm in milliseconds: it is entered like Linux
// (64-bit entry, RSI = boot_params), does what `do=` on its command line says, prints to COM1 and ends.
//
//   do=hello          prints a line
//   do=memory         checks that every usable byte range of the memory map is RAM up to its last byte
//   do=blk            reads sector 0 of the first block device, writes sector 1, flushes if it can, reads it back
//   do=log            writes records to the first block device, flushing each if it can (flush=no: does not ask to), and
//                     after each that was flushed its number to the second; a sector each
//   do=capacity       prints the first block device's sectors, and again when they change
//   do=rng            reads 32 bytes of entropy
//   do=flood          prints for ever
//   do=spin           does nothing for ever
//   do=halt           stops its CPU for ever
//   do=heed           waits for the power button
//   do=echo           prints what comes in on COM1
//   end=poweroff|reboot|keyboard|panic|triple   how it ends (poweroff unless told otherwise)
//
// Interrupts stay off and queues are polled: KVM without VMX or SVM emulates ring 0 one instruction at a time, and the
// fewer kinds it meets the better. Compiled without SSE for the same reason.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define COM1 0x3f8
#define ACPI_PORT 0x600
#define PVPANIC 0x505
#define BOOT_TIMER 0xd0000000ul
#define MMIO_FIRST 0xd0001000ul
#define MMIO_COUNT 18
#define ECAM 0xe0000000ul

static inline void outb(u16 port, u8 v) { __asm__ volatile("outb %0,%1" ::"a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline void barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline u32 r32(u64 a) { return *(volatile u32 *)a; }
static inline void w32(u64 a, u32 v) { *(volatile u32 *)a = v; }
static inline u16 r16(u64 a) { return *(volatile u16 *)a; }
static inline void w16(u64 a, u16 v) { *(volatile u16 *)a = v; }
static inline u8 r8(u64 a) { return *(volatile u8 *)a; }
static inline void w8(u64 a, u8 v) { *(volatile u8 *)a = v; }

static void put(char c) { while (!(inb(COM1 + 5) & 0x20)) {} outb(COM1, c); }
static void print(const char *s) { while (*s) put(*s++); }
static void print_hex(u64 v) {
    print("0x");
    int started = 0;
    for (int shift = 60; shift >= 0; shift -= 4) {
        int digit = (v >> shift) & 15;
        if (digit || started || !shift) { put("0123456789abcdef"[digit]); started = 1; }
    }
}

static void end_with(const char *how);
static void fail(const char *what) {
    print("FAIL ");
    print(what);
    print("\n");
    end_with("reboot");
}

static int starts(const char *s, const char *prefix) {
    while (*prefix) if (*s++ != *prefix++) return 0;
    return 1;
}
// The value after `key` on the command line, or `none`.
static const char *option(const char *cmdline, const char *key, const char *none) {
    for (const char *p = cmdline; *p; p++)
        if ((p == cmdline || p[-1] == ' ') && starts(p, key)) { while (*p && *p != '=') p++; return p + 1; }
    return none;
}

// The entry maps the first GiB; devices and high RAM lie beyond. Map 0..8 GiB with 2 MiB pages.
static u64 pd[8][512] __attribute__((aligned(4096)));
static void map_all(void) {
    u64 cr3;
    __asm__ volatile("mov %%cr3,%0" : "=r"(cr3));
    u64 *pml4 = (u64 *)(cr3 & ~0xffful);
    u64 *pdpt = (u64 *)(pml4[0] & ~0xffful);
    for (u64 g = 1; g < 8; g++) {
        for (u64 i = 0; i < 512; i++) pd[g][i] = (g << 30) | (i << 21) | 0x83;
        pdpt[g] = (u64)pd[g] | 3;
    }
    __asm__ volatile("mov %0,%%cr3" ::"r"(cr3) : "memory");
}

// --- virtio over either transport: what the tests need of it ---
struct desc { u64 addr; u32 len; u16 flags, next; };
static struct desc all_descs[2][8] __attribute__((aligned(16)));
static struct { u16 flags, idx, ring[8]; u16 event; } all_avail[2] __attribute__((aligned(4)));
static struct { u16 flags, idx; struct { u32 id, len; } ring[8]; u16 event; } all_used[2] __attribute__((aligned(4)));
static int current; // the device that the following is about
#define descs all_descs[current]
#define avail all_avail[current]
#define used all_used[current]
static int skip; // devices of its kind that come before it
static int accept = 1; // whether it asks for what is on offer

static u64 mmio, common, notify; // mmio != 0: a virtio-mmio window; else PCI's common configuration
static u64 config; // the device's own configuration
static u32 features; // the device's own ones that were accepted

static int find_mmio(u32 id) {
    int seen = 0;
    for (u64 i = 0; i < MMIO_COUNT; i++) {
        u64 base = MMIO_FIRST + i * 0x1000;
        if (r32(base) == 0x74726976 && r32(base + 8) == id && seen++ == skip) { mmio = base; config = base + 0x100; return 1; }
    }
    return 0;
}
static int find_pci(u32 id) {
    int seen = 0;
    if (r32(ECAM) == 0xffffffff) return 0;
    for (u64 slot = 1; slot < 32; slot++) {
        u64 function = ECAM + (slot << 15);
        if (r32(function) != ((0x1040 + id) << 16 | 0x1af4) || seen++ != skip) continue;
        w16(function + 4, r16(function + 4) | 6); // memory space, bus master
        u64 bar = r32(function + 0x10) & ~15u;
        u32 multiplier = 0;
        u64 notify_base = 0;
        for (u8 cap = r8(function + 0x34); cap; cap = r8(function + cap + 1)) {
            if (r8(function + cap) != 9) continue;
            u64 at = bar + r32(function + cap + 8);
            if (r8(function + cap + 3) == 1) common = at;
            if (r8(function + cap + 3) == 4) config = at;
            if (r8(function + cap + 3) == 2) { notify_base = at; multiplier = r32(function + cap + 16); }
        }
        w16(common + 22, 0);
        notify = notify_base + r16(common + 30) * multiplier;
        return 1;
    }
    return 0;
}
static void set_status(u8 status) { if (mmio) w32(mmio + 0x70, status); else w8(common + 20, status); }
static u8 get_status(void) { return mmio ? (u8)r32(mmio + 0x70) : r8(common + 20); }

static void start_device(u32 id) {
    if (!find_mmio(id) && !find_pci(id)) fail("no such device");
    set_status(0);
    set_status(1);
    set_status(3);
    // VIRTIO_F_VERSION_1, and FLUSH where it is on offer.
    if (mmio) {
        w32(mmio + 0x14, 0);
        features = id == 2 && accept ? r32(mmio + 0x10) & (1 << 9) : 0;
        w32(mmio + 0x24, 1); w32(mmio + 0x20, 1); w32(mmio + 0x24, 0); w32(mmio + 0x20, features);
    } else {
        w32(common, 0);
        features = id == 2 && accept ? r32(common + 4) & (1 << 9) : 0;
        w32(common + 8, 1); w32(common + 12, 1); w32(common + 8, 0); w32(common + 12, features);
    }
    set_status(11);
    if (!(get_status() & 8)) fail("features refused");
    u64 rings[3] = {(u64)descs, (u64)&avail, (u64)&used};
    if (mmio) {
        w32(mmio + 0x30, 0);
        w32(mmio + 0x38, 8);
        for (int i = 0; i < 3; i++) { w32(mmio + 0x80 + 16 * i, rings[i]); w32(mmio + 0x84 + 16 * i, rings[i] >> 32); }
        w32(mmio + 0x44, 1);
    } else {
        w16(common + 22, 0);
        w16(common + 24, 8);
        for (int i = 0; i < 3; i++) { w32(common + 32 + 8 * i, rings[i]); w32(common + 36 + 8 * i, rings[i] >> 32); }
        w16(common + 28, 1);
    }
    set_status(15);
}
// Publishes the chain that starts at descriptor 0 and waits until it is used; the bytes written.
static u32 submit(void) {
    avail.ring[avail.idx % 8] = 0;
    barrier();
    avail.idx++;
    barrier();
    u16 want = avail.idx;
    if (mmio) w32(mmio + 0x50, 0); else w16(notify, 0);
    while (*(volatile u16 *)&used.idx != want) {}
    return used.ring[(u16)(want - 1) % 8].len;
}
static void link(int i, void *p, u32 len, int device_writes, int more) {
    descs[i].addr = (u64)p;
    descs[i].len = len;
    descs[i].flags = (device_writes ? 2 : 0) | (more ? 1 : 0);
    descs[i].next = i + 1;
}

static u8 sector[512], status_byte;
static struct { u32 type, reserved; u64 sector; } header;
static void block(u32 type, u64 at, u32 len) {
    header.type = type;
    header.sector = at;
    status_byte = 0xff;
    link(0, &header, 16, 0, 1);
    if (len) link(1, sector, len, type == 0 || type == 8, 1);
    link(len ? 2 : 1, &status_byte, 1, 1, 0);
    if (!len) descs[0].next = 1;
    submit();
    if (*(volatile u8 *)&status_byte) fail("block status");
}
static void do_blk(void) {
    start_device(2);
    block(0, 0, 512);
    print("sector 0 begins with ");
    for (int i = 0; i < 4; i++) put(sector[i]);
    print("\n");
    for (int i = 0; i < 512; i++) sector[i] = (u8)(i * 7);
    block(1, 1, 512);
    if (features) block(4, 0, 0);
    for (int i = 0; i < 512; i++) sector[i] = 0;
    block(0, 1, 512);
    for (int i = 0; i < 512; i++) if (sector[i] != (u8)(i * 7)) fail("sector 1 differs");
    print("sector 1 written and read back\n");
}
static void turn_to(int device) {
    static struct { u64 mmio, common, notify, config; u32 features; } kept[2];
    kept[current].mmio = mmio, kept[current].common = common, kept[current].notify = notify;
    kept[current].config = config, kept[current].features = features;
    current = device;
    mmio = kept[current].mmio, common = kept[current].common, notify = kept[current].notify;
    config = kept[current].config, features = kept[current].features;
}
static void do_log(void) {
    u64 *words = (u64 *)sector;
    start_device(2);
    turn_to(1);
    skip = 1;
    start_device(2);
    turn_to(0);
    print("logging\n");
    for (u64 n = 1; n <= r32(config); n++) {
        words[0] = words[63] = n;
        words[1] = words[62] = n * 0x9e3779b97f4a7c15ul;
        block(1, n - 1, 512);
        if (features) block(4, 0, 0);
        turn_to(1);
        block(1, 0, 512);
        turn_to(0);
    }
}
static u64 capacity(void) {
    for (;;) {
        u32 before = mmio ? r32(mmio + 0xfc) : r8(common + 21);
        u64 sectors = r32(config) | (u64)r32(config + 4) << 32;
        if (before == (mmio ? r32(mmio + 0xfc) : r8(common + 21))) return sectors;
    }
}
static void do_capacity(void) {
    start_device(2);
    for (u64 last = ~0ul;;) {
        u64 now = capacity();
        if (now == last) continue;
        print("sectors ");
        print_hex(now);
        print("\n");
        last = now;
    }
}
static void do_rng(void) {
    start_device(4);
    link(0, sector, 32, 1, 0);
    u32 got = submit();
    int same = 1;
    for (int i = 1; i < 32; i++) if (sector[i] != sector[0]) same = 0;
    if (got != 32 || same) fail("entropy");
    print("32 bytes of entropy\n");
}
static void do_memory(u8 *params) {
    u64 total = 0;
    u8 *entry = params + 0x2d0;
    for (int i = params[0x1e8]; i > 0; i--, entry += 20) {
        u64 start = *(u64 *)entry, len = *(u64 *)(entry + 8);
        if (*(u32 *)(entry + 16) != 1) continue;
        total += len;
        if (start < 0x100000) continue;
        u64 places[2] = {start + len - 8, start + len / 2};
        for (int p = 0; p < 2; p++) {
            *(volatile u64 *)places[p] = places[p] ^ 0x5a5a5a5a;
            if (*(volatile u64 *)places[p] != (places[p] ^ 0x5a5a5a5a)) fail("RAM");
        }
    }
    print("usable memory ");
    print_hex(total);
    print("\n");
}

static void end_with(const char *how) {
    if (starts(how, "poweroff")) outb(ACPI_PORT, (5 << 2) | (1 << 5));
    if (starts(how, "reboot")) outb(ACPI_PORT + 3, 1);
    if (starts(how, "keyboard")) outb(0x64, 0xfe);
    if (starts(how, "panic")) outb(PVPANIC, 1);
    if (starts(how, "triple")) {
        struct { u16 limit; u64 base; } __attribute__((packed)) idt = {0, 0};
        __asm__ volatile("lidt %0\n\tud2" ::"m"(idt));
    }
    for (;;) __asm__ volatile("pause");
}

void guest_main(u8 *params) {
    const char *cmdline = (const char *)(u64) * (u32 *)(params + 0x228);
    const char *what = option(cmdline, "do=", "hello");
    map_all();
    print("bare-metal guest\n");
    w8(BOOT_TIMER, 123);
    if (starts(what, "memory")) do_memory(params);
    if (starts(what, "blk")) do_blk();
    accept = !starts(option(cmdline, "flush=", "yes"), "no");
    if (starts(what, "log")) do_log();
    if (starts(what, "capacity")) do_capacity();
    if (starts(what, "rng")) do_rng();
    if (starts(what, "flood")) for (;;) print("the quick brown fox jumps over the lazy dog\n");
    if (starts(what, "spin")) for (;;) __asm__ volatile("pause");
    if (starts(what, "halt")) for (;;) __asm__ volatile("cli\n\thlt");
    if (starts(what, "heed")) while (!(inb(ACPI_PORT + 2) & 1)) __asm__ volatile("pause");
    if (starts(what, "echo")) for (;;) if (inb(COM1 + 5) & 1) put(inb(COM1));
    print("done\n");
    end_with(option(cmdline, "end=", "poweroff"));
}

__asm__(".section .text.entry,\"ax\"\n"
        ".globl entry\n"
        "entry:\n"
        "  lea stack_top(%rip),%rsp\n"
        "  mov %rsi,%rdi\n"
        "  call guest_main\n"
        ".section .bss\n"
        "  .balign 16\n"
        "  .skip 16384\n"
        "stack_top:\n"
        ".text\n");
