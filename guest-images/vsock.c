// vsock: what a guest needs to try its socket device, as one small program without a C library.
//
//   vsock listen PORT [-r] [-n N]        takes N connections (1), one after the other: bytes from the host to standard output,
//                                        standard input to the host, each until its end
//   vsock connect PORT [-r]              the same with a connection of its own to PORT of the host
//   vsock echo PORT [-r] [-n N]          takes N connections (for ever), all at a time, and sends back what comes
//   vsock storm PORT N                   connects N times without closing: how many were made, how many refused
//   -r                                   records (SOCK_SEQPACKET) instead of a stream
//
// Exit status 0 if all went well.
#define AF_VSOCK 40
#define HOST 2
#define ANY 0xffffffffu

typedef unsigned int u32;
typedef unsigned short u16;
typedef long i64;

static i64 call(i64 number, i64 a, i64 b, i64 c, i64 d, i64 e) {
    i64 result;
    register i64 r10 __asm__("r10") = d;
    register i64 r8 __asm__("r8") = e;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return result;
}
#define read(fd, p, n) call(0, fd, (i64)(p), n, 0, 0)
#define write(fd, p, n) call(1, fd, (i64)(p), n, 0, 0)
#define close(fd) call(3, fd, 0, 0, 0, 0)
#define poll(fds, n, ms) call(7, (i64)(fds), n, ms, 0, 0)
#define socket(family, type) call(41, family, type, 0, 0, 0)
#define connect(fd, address) call(42, fd, (i64)(address), sizeof *(address), 0, 0)
#define accept(fd) call(43, fd, 0, 0, 0, 0)
#define shutdown(fd, how) call(48, fd, how, 0, 0, 0)
#define bind(fd, address) call(49, fd, (i64)(address), sizeof *(address), 0, 0)
#define listen(fd, n) call(50, fd, n, 0, 0, 0)
#define setrlimit(what, limit) call(160, what, (i64)(limit), 0, 0, 0)
#define exit(status) (call(231, status, 0, 0, 0, 0), __builtin_unreachable())

struct address { u16 family, reserved; u32 port, cid; unsigned char zero[4]; };
struct pollfd { int fd; short events, revents; };

static u32 length(const char *s) { u32 n = 0; while (s[n]) n++; return n; }
static int same(const char *a, const char *b) { while (*a && *a == *b) a++, b++; return *a == *b; }
static void say(int fd, const char *s) { write(fd, s, length(s)); }
static void say_number(int fd, i64 n) {
    char digits[24], *p = digits + sizeof digits;
    *--p = 0;
    do *--p = '0' + n % 10; while (n /= 10);
    say(fd, p);
}
static void fail(const char *what, i64 error) {
    say(2, "vsock: "); say(2, what); say(2, ": error "); say_number(2, -error); say(2, "\n");
    exit(1);
}
static i64 check(i64 result, const char *what) { if (result < 0) fail(what, result); return result; }
static u32 number(const char *s) { u32 n = 0; for (; *s; s++) { if (*s < '0' || *s > '9') fail("not a number", 0); n = n * 10 + (*s - '0'); } return n; }

static char buffer[65536];

// Passes what `from` has to `to`, whole; 0 at the end.
static i64 pass(int from, int to) {
    i64 got = check(read(from, buffer, sizeof buffer), "read");
    for (i64 done = 0; done < got;) done += check(write(to, buffer + done, got - done), "write");
    return got;
}

static void talk(int fd) {
    struct pollfd fds[2] = {{fd, 1, 0}, {0, 1, 0}};
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
        check(poll(fds, 2, -1), "poll");
        if (fds[0].revents && !pass(fd, 1)) fds[0].fd = -1;
        if (fds[1].revents && !pass(0, fd)) { shutdown(fd, 1); fds[1].fd = -1; }
    }
    close(fd);
}

static struct pollfd all[1200];

static void echo(int listener, i64 left) {
    u32 count = 1;
    all[0] = (struct pollfd){listener, 1, 0};
    while (left || count > 1) {
        if (!left) all[0].fd = -1;
        check(poll(all, count, -1), "poll");
        for (u32 i = 1; i < count; i++) {
            if (!all[i].revents) continue;
            i64 got = read(all[i].fd, buffer, sizeof buffer), done = 0;
            while (done < got) {
                i64 sent = write(all[i].fd, buffer + done, got - done);
                if (sent < 0) break;
                done += sent;
            }
            if (got <= 0 || done < got) { close(all[i].fd); all[i--] = all[--count]; }
        }
        if (all[0].fd >= 0 && all[0].revents && count < 1200) {
            all[count++] = (struct pollfd){check(accept(listener), "accept"), 1, 0};
            if (left > 0) left--;
        }
    }
}

void vsock_main(i64 *stack) {
    i64 argc = stack[0];
    char **argv = (char **)(stack + 1);
    if (argc < 3) { say(2, "usage: vsock listen|connect|echo PORT [-r] [-n N], vsock storm PORT N\n"); exit(2); }
    int type = 1;
    i64 count = -1;
    for (int i = 3; i < argc; i++) {
        if (same(argv[i], "-r")) type = 5;
        if (same(argv[i], "-n") && i + 1 < argc) count = number(argv[++i]);
    }
    struct address at = {AF_VSOCK, 0, number(argv[2]), ANY, {0}};
    // Descriptors: as many as connections are tried.
    i64 limit[2] = {4096, 4096};
    setrlimit(7, limit);
    if (same(argv[1], "storm") && argc > 3) {
        i64 made = 0, refused = 0;
        at.cid = HOST;
        for (u32 n = number(argv[3]); n; n--) {
            int fd = check(socket(AF_VSOCK, 1), "socket");
            i64 result = connect(fd, &at);
            if (result == 0) made++;
            else { refused++; close(fd); }
        }
        say(1, "made="); say_number(1, made); say(1, "\nrefused="); say_number(1, refused); say(1, "\n");
        exit(0);
    }
    int fd = check(socket(AF_VSOCK, type), "socket");
    if (same(argv[1], "connect")) {
        at.cid = HOST;
        check(connect(fd, &at), "connect");
        talk(fd);
        exit(0);
    }
    check(bind(fd, &at), "bind");
    check(listen(fd, 128), "listen");
    say(2, "vsock: listening\n");
    if (same(argv[1], "echo")) echo(fd, count);
    else for (count = count < 0 ? 1 : count; count; count--) talk(check(accept(fd), "accept"));
    exit(0);
}

__asm__(".globl _start\n_start: mov %rsp,%rdi\n  and $-16,%rsp\n  call vsock_main\n");
