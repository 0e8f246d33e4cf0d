/* The guest's PID 1, and a server on five vsock ports.
 *
 * Each connection has its own process, so that a stalled one delays no other:
 *   9000  digest   reads to EOF, answers "BYTES CRC32\n" in decimal, closes
 *   9001  source   reads a line "BYTES\n", sends that many bytes of the pattern, closes
 *   9002  echo     echoes until EOF, then closes
 *   9003  out      reads a line "BYTES\n", connects to the host's port 7000, sends that many
 *                  bytes of the pattern, half-closes, and relays the host's answer
 *     22  ssh      runs sshd, as inetd does
 * The pattern is byte i = (i * 31 + i / 256) mod 256, which repeats after 64 KiB.
 */
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static unsigned char buffer[1 << 16];

/* Print the error on the console and end the process; the host sees a closed connection. */
static void die(const char *what)
{
    perror(what);
    exit(1);
}

static struct sockaddr_vm address(unsigned cid, unsigned port)
{
    struct sockaddr_vm a = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port };
    return a;
}

static size_t read_some(int fd)
{
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0)
        die("read");
    return (size_t)n;
}

static void write_all(int fd, const void *data, size_t size)
{
    for (const char *p = data; size > 0;) {
        ssize_t n = write(fd, p, size);
        if (n < 0)
            die("write");
        p += n;
        size -= (size_t)n;
    }
}

/* Read the first line, a decimal number. */
static unsigned long long read_number(int fd)
{
    char line[32] = "";
    for (size_t i = 0; i + 1 < sizeof line && read(fd, line + i, 1) == 1; i++)
        if (line[i] == '\n')
            break;
    return strtoull(line, NULL, 10);
}

static void write_pattern(int fd, unsigned long long size)
{
    for (size_t i = 0; i < sizeof buffer; i++)
        buffer[i] = (unsigned char)(i * 31 + i / 256);
    for (; size > sizeof buffer; size -= sizeof buffer)
        write_all(fd, buffer, sizeof buffer);
    write_all(fd, buffer, size);
}

/* The CRC-32 of zlib and of POSIX's file formats, reflected, polynomial 0xEDB88320. */
static uint32_t crc32(uint32_t crc, size_t size)
{
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            table[i] = i;
            for (int bit = 0; bit < 8; bit++)
                table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xEDB88320u : 0);
        }
    crc = ~crc;
    for (size_t i = 0; i < size; i++)
        crc = table[(crc ^ buffer[i]) & 0xFF] ^ crc >> 8;
    return ~crc;
}

static void digest(int fd)
{
    unsigned long long total = 0;
    uint32_t crc = 0;
    for (size_t n; (n = read_some(fd)) > 0; total += n)
        crc = crc32(crc, n);
    dprintf(fd, "%llu %u\n", total, crc);
}

static void source(int fd)
{
    write_pattern(fd, read_number(fd));
}

static void echo(int fd)
{
    for (size_t n; (n = read_some(fd)) > 0;)
        write_all(fd, buffer, n);
}

static void out(int fd)
{
    unsigned long long size = read_number(fd);
    struct sockaddr_vm host = address(VMADDR_CID_HOST, 7000);
    int outer = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (connect(outer, (struct sockaddr *)&host, sizeof host) < 0)
        die("connect to the host");
    write_pattern(outer, size);
    shutdown(outer, SHUT_WR);
    for (size_t n; (n = read_some(outer)) > 0;)
        write_all(fd, buffer, n);
}

static void serve(unsigned port, void (*service)(int fd))
{
    struct sockaddr_vm any = address(VMADDR_CID_ANY, port);
    int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) < 0 || listen(listener, 16) < 0)
        die("listen");
    if (fork())
        return;
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            die("accept");
        if (fork() == 0) {
            service(fd);
            exit(0);
        }
        close(fd);
    }
}

static void ssh(int fd)
{
    signal(SIGCHLD, SIG_DFL);
    dup2(fd, 0);
    dup2(fd, 1);
    execl("/usr/sbin/sshd", "sshd", "-i", "-e", (char *)NULL);
    die("sshd");
}

int main(void)
{
    signal(SIGCHLD, SIG_IGN);
    serve(9000, digest);
    serve(9001, source);
    serve(9002, echo);
    serve(9003, out);
    serve(22, ssh);
    puts("guest: ready");
    fflush(stdout);
    for (;;)
        pause();
}
