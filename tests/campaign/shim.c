/* Counts what a process does to files below a folder, and kills it or fails it at one of these
 * operations. Preloaded, it stands before the C library for Python, PyTorch and NumPy alike.
 *
 * An operation is: open (for writing), write, fsync, rename, mkdir, truncate, remove; read (opening
 * any file, where asked for); or a mark that the driver sets. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { NOTHING, KILL, KILL_HALF_WAY, FAIL, FAIL_FROM_HERE, WRITE_SHORT };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], place[256] = "start-up", cut[PATH_MAX];
static size_t root_length;
static pid_t owner;
static long count, target;
static int action, error, report = -1, trace = -1, counts_reads;

void campaign_arm(const char *folder, long at, int what, int number, int report_to, int trace_to,
                  int reads) {
    snprintf(root, sizeof root, "%s/", folder);
    root_length = strlen(root);
    owner = getpid();
    count = 0, target = at, action = what, error = number;
    report = report_to, trace = trace_to, counts_reads = reads;
    cut[0] = 0;
}

void campaign_place(const char *text) { snprintf(place, sizeof place, "%s", text); }

static void line(int to, const char *kind, const char *path) {
    char text[PATH_MAX + 512];
    int n = snprintf(text, sizeof text, "%ld\t%s\t%s\t%s\n", count, kind, path, place);
    if (to >= 0 && n > 0) syscall(SYS_write, to, text, (size_t)n);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

void campaign_kill(const char *kind) {
    line(report, kind, "");
    die();
}

enum outcome { GO_ON, FAILS, HALF_THEN_DIES, HALF };

static enum outcome counted(const char *kind, const char *path, size_t size) {
    int changes_files = strcmp(kind, "read") && strcmp(kind, "mark");
    enum outcome outcome = GO_ON;
    pthread_mutex_lock(&lock);
    count++;
    line(trace, kind, path);
    if (cut[0] && !strcmp(kind, "write") && !strcmp(cut, path)) {
        outcome = FAILS; /* the rest of a short write finds the disk full */
        error = ENOSPC;
        cut[0] = 0;
    } else if (count == target) {
        line(report, kind, path);
        if (action == KILL || (action == KILL_HALF_WAY && size < 2)) die();
        if (action == KILL_HALF_WAY) outcome = HALF_THEN_DIES;
        if (action == FAIL || action == FAIL_FROM_HERE) outcome = FAILS;
        if (action == WRITE_SHORT && size < 2) outcome = FAILS, error = ENOSPC;
        if (action == WRITE_SHORT && size >= 2) {
            outcome = HALF;
            snprintf(cut, sizeof cut, "%s", path);
        }
    } else if (count > target && action == FAIL_FROM_HERE && changes_files &&
               strcmp(kind, "remove")) {
        outcome = FAILS; /* a disk that is full still removes */
    }
    pthread_mutex_unlock(&lock);
    return outcome;
}

static int ours(void) { return root_length && getpid() == owner; }

/* The path below the folder, or null. */
static const char *below(const char *path) {
    return strncmp(path, root, root_length) ? NULL : path + root_length;
}

static const char *of_descriptor(int fd, char *buffer) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(name, buffer, PATH_MAX - 1);
    buffer[n < 0 ? 0 : n] = 0;
    return below(buffer);
}

static const char *of_path(int at, const char *path, char *buffer) {
    if (path[0] == '/' || at == AT_FDCWD) return below(path);
    if (!of_descriptor(at, buffer)) return NULL;
    size_t n = strlen(buffer);
    snprintf(buffer + n, PATH_MAX - n, "/%s", path);
    return below(buffer);
}

static int fails_at(const char *kind, const char *path) {
    if (!path || counted(kind, path, 0) == GO_ON) return 0;
    errno = error;
    return 1;
}

static int fails(const char *kind, int at, const char *path) {
    char buffer[PATH_MAX];
    return ours() && fails_at(kind, of_path(at, path, buffer));
}

static int fails_fd(const char *kind, int fd) {
    char buffer[PATH_MAX];
    return ours() && fails_at(kind, of_descriptor(fd, buffer));
}

void campaign_mark(void) {
    if (ours()) fails_at("mark", "");
}

static int opened(int at, const char *path, int flags, mode_t mode) {
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT;
    if (writes && fails("open", at, path)) return -1;
    if (!writes && counts_reads && ours()) fails_at("read", path);
    return syscall(SYS_openat, at, path, flags, mode);
}

#define MODE(last)                                                    \
    mode_t mode = 0;                                                  \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {        \
        va_list rest;                                                 \
        va_start(rest, last);                                         \
        mode = va_arg(rest, mode_t);                                  \
        va_end(rest);                                                 \
    }

int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return opened(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return opened(at, path, flags, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static ssize_t written(int fd, const void *data, size_t size, off_t offset) {
    char buffer[PATH_MAX];
    const char *path = ours() ? of_descriptor(fd, buffer) : NULL;
    enum outcome outcome = path ? counted("write", path, size) : GO_ON;
    if (outcome == FAILS) {
        errno = error;
        return -1;
    }
    if (outcome != GO_ON) size /= 2;
    ssize_t done = offset < 0 ? syscall(SYS_write, fd, data, size)
                              : syscall(SYS_pwrite64, fd, data, size, offset);
    if (outcome == HALF_THEN_DIES) die();
    return done;
}

ssize_t write(int fd, const void *data, size_t size) { return written(fd, data, size, -1); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return written(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return written(fd, data, size, at); }

ssize_t writev(int fd, const struct iovec *parts, int number) {
    return fails_fd("write", fd) ? -1 : syscall(SYS_writev, fd, parts, number);
}

int fsync(int fd) { return fails_fd("fsync", fd) ? -1 : syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return fails_fd("fsync", fd) ? -1 : syscall(SYS_fdatasync, fd); }
int ftruncate(int fd, off_t size) { return fails_fd("truncate", fd) ? -1 : syscall(SYS_ftruncate, fd, size); }
int ftruncate64(int fd, off64_t size) { return fails_fd("truncate", fd) ? -1 : syscall(SYS_ftruncate, fd, size); }

int truncate(const char *path, off_t size) {
    return fails("truncate", AT_FDCWD, path) ? -1 : syscall(SYS_truncate, path, size);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    return fails("rename", from_at, from) ? -1
                                          : syscall(SYS_renameat2, from_at, from, to_at, to, flags);
}
int renameat(int from_at, const char *from, int to_at, const char *to) { return renameat2(from_at, from, to_at, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int mkdirat(int at, const char *path, mode_t mode) {
    return fails("mkdir", at, path) ? -1 : syscall(SYS_mkdirat, at, path, mode);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int at, const char *path, int flags) {
    return fails("remove", at, path) ? -1 : syscall(SYS_unlinkat, at, path, flags);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
