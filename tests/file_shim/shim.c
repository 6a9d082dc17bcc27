/* What a process changes below one folder, counted, and at one change disturbed: a library to be preloaded.
 *
 * shim_arm() says which folder, at the how-manieth change, and what then: nothing, the process killed before it (k),
 * the process killed halfway through it (t: of a write, half is written; anything else is done), an error once (e), or
 * from then on (f). With a log, every change that succeeded is written there, contents included, for power_loss.py.
 * Processes started anew are told the same by SHIM_FOLDER, SHIM_AT, SHIM_ACTION and SHIM_ERROR; each counts its own.
 *
 * Everything that ends in the C library's wrappers is seen: Python's own, those of Zarr's, of compiled Rust and C++. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t folder_length;
static long at, *count;
static char action;
static int error_number, log_to = -1;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void shim_arm(const char *path, long number, char what, int error, const char *log, long *counted) {
    at = number, action = what, error_number = error, count = counted;
    log_to = *log ? REAL(open)(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
}

/* A process that was started by one under the shim, such as a job of a sweep, arms itself. */
__attribute__((constructor)) static void arm_by_environment(void) {
    static long counted_here;
    const char *path = getenv("SHIM_FOLDER");
    if (path) shim_arm(path, atol(getenv("SHIM_AT")), *getenv("SHIM_ACTION"), atoi(getenv("SHIM_ERROR")), "", &counted_here);
}

static int within(const char *path) {
    return folder_length && !strncmp(path, folder, folder_length) && (!path[folder_length] || path[folder_length] == '/');
}

/* Absolute path of a name in an open folder, or of an open file where the name is empty. */
static const char *path_of(int descriptor, const char *name, char *buffer) {
    char link[64];
    ssize_t length;
    if (*name == '/') return name;
    if (descriptor == AT_FDCWD)
        length = getcwd(buffer, PATH_MAX) ? (ssize_t)strlen(buffer) : -1;
    else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        length = readlink(link, buffer, PATH_MAX - 1);
    }
    if (length < 0) return "";
    if (*name)
        snprintf(buffer + length, PATH_MAX - length, "/%s", name);
    else
        buffer[length] = 0;
    return buffer;
}

static void log_change(const char *kind, const char *path, const char *other, off_t offset, const void *data, size_t n) {
    char head[2 * PATH_MAX + 128];
    int length;
    if (log_to < 0) return;
    length = snprintf(head, sizeof head, "%s\t%s\t%s\t%lld\t%zu\n", kind, path, other, (long long)offset, data ? n : 0);
    ssize_t (*real)(int, const void *, size_t) = REAL(write);
    if (real(log_to, head, length) != length || (data && real(log_to, data, n) != (ssize_t)n)) abort();
}

/* Counts a change. 0: do it; 1: do half of it, then call die(); -1: it has failed, errno says how. */
static int disturbed(void) {
    long number = ++*count;
    if (!action || number < at || (number > at && action != 'f')) return 0;
    if (action == 'k') raise(SIGKILL);
    if (action == 't') return 1;
    errno = error_number;
    return -1;
}

static void die(void) { raise(SIGKILL); }

#define LOCKED(path, call, ...)                                       \
    {                                                                 \
        int saved, way;                                               \
        if (!within(path)) return call;                               \
        pthread_mutex_lock(&one_at_a_time);                           \
        way = disturbed();                                            \
        __typeof__(call) result = way < 0 ? -1 : call;                \
        saved = errno;                                                \
        if (result >= 0) log_change(__VA_ARGS__);                     \
        if (way > 0) die();                                           \
        pthread_mutex_unlock(&one_at_a_time);                         \
        errno = saved;                                                \
        return result;                                                \
    }

/* ---------------------------------------------------------------------------------------------------------- opening */

#define FOR_WRITING (O_WRONLY | O_RDWR)

static int opening(const char *function, int descriptor, const char *name, int flags, mode_t mode) {
    int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, function);
    char buffer[PATH_MAX];
    const char *path = folder_length && (flags & FOR_WRITING) ? path_of(descriptor, name, buffer) : "";
    const char *kind = flags & O_TRUNC ? "create empty" : flags & O_CREAT ? "create" : "open";
    LOCKED(path, real(descriptor, name, flags, mode), kind, path, "", 0, NULL, 0)
}

#define OPENING(name, through, ...)              \
    {                                            \
        mode_t mode = 0;                         \
        if (flags & (O_CREAT | O_TMPFILE)) {     \
            va_list rest;                        \
            va_start(rest, flags);               \
            mode = va_arg(rest, int);            \
            va_end(rest);                        \
        }                                        \
        return opening(through, __VA_ARGS__, mode); \
    }

int open(const char *path, int flags, ...) OPENING(open, "openat", AT_FDCWD, path, flags)
int open64(const char *path, int flags, ...) OPENING(open64, "openat64", AT_FDCWD, path, flags)
int openat(int at, const char *path, int flags, ...) OPENING(openat, "openat", at, path, flags)
int openat64(int at, const char *path, int flags, ...) OPENING(openat64, "openat64", at, path, flags)
int creat(const char *path, mode_t mode) {
    return opening("openat", AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *path, mode_t mode) {
    return opening("openat64", AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* ---------------------------------------------------------------------------------------------------------- writing */

/* At the place where the file stands where offset is -1. Pieces are joined: one write. */
static ssize_t writing(int descriptor, const void *data, size_t n, off_t offset) {
    ssize_t (*plain)(int, const void *, size_t) = REAL(write);
    ssize_t (*placed)(int, const void *, size_t, off_t) = REAL(pwrite);
    char buffer[PATH_MAX];
    const char *path = folder_length && descriptor > 2 ? path_of(descriptor, "", buffer) : "";
    if (!within(path)) return offset < 0 ? plain(descriptor, data, n) : placed(descriptor, data, n, offset);
    pthread_mutex_lock(&one_at_a_time);
    int way = disturbed(), saved;
    off_t place = offset < 0 ? lseek(descriptor, 0, SEEK_CUR) : offset;
    if (way > 0) n /= 2;
    ssize_t written = way < 0 ? -1 : offset < 0 ? plain(descriptor, data, n) : placed(descriptor, data, n, offset);
    saved = errno;
    if (written > 0) log_change("write", path, "", place, data, written);
    if (way > 0) die();
    pthread_mutex_unlock(&one_at_a_time);
    errno = saved;
    return written;
}

ssize_t write(int descriptor, const void *data, size_t n) { return writing(descriptor, data, n, -1); }
ssize_t pwrite(int descriptor, const void *data, size_t n, off_t offset) { return writing(descriptor, data, n, offset); }
ssize_t pwrite64(int descriptor, const void *data, size_t n, off_t offset) {
    return writing(descriptor, data, n, offset);
}

static ssize_t joined(int descriptor, const struct iovec *parts, int n_parts, off_t offset) {
    size_t n = 0;
    for (int i = 0; i < n_parts; i++) n += parts[i].iov_len;
    char *data = malloc(n ? n : 1), *end = data;
    for (int i = 0; i < n_parts; i++) end = mempcpy(end, parts[i].iov_base, parts[i].iov_len);
    ssize_t written = writing(descriptor, data, n, offset);
    int saved = errno;
    free(data);
    errno = saved;
    return written;
}

ssize_t writev(int descriptor, const struct iovec *parts, int n) { return joined(descriptor, parts, n, -1); }
ssize_t pwritev(int descriptor, const struct iovec *parts, int n, off_t offset) {
    return joined(descriptor, parts, n, offset);
}
ssize_t pwritev64(int descriptor, const struct iovec *parts, int n, off_t offset) {
    return joined(descriptor, parts, n, offset);
}

/* Copies within the kernel are refused, so that whoever asks for one copies by reading and writing. */
ssize_t sendfile(int out, int in, off_t *offset, size_t n) {
    char buffer[PATH_MAX];
    if (folder_length && within(path_of(out, "", buffer))) return errno = EINVAL, -1;
    return REAL(sendfile)(out, in, offset, n);
}
ssize_t sendfile64(int out, int in, off_t *offset, size_t n) { return sendfile(out, in, offset, n); }
ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t n, unsigned flags) {
    char buffer[PATH_MAX];
    if (folder_length && within(path_of(out, "", buffer))) return errno = EINVAL, -1;
    return REAL(copy_file_range)(in, from, out, to, n, flags);
}

/* ------------------------------------------------------------------------------------------------- everything else */

#define OF_A_FILE(descriptor) \
    char buffer[PATH_MAX];    \
    const char *path = folder_length ? path_of(descriptor, "", buffer) : "";

int ftruncate(int descriptor, off_t length) {
    OF_A_FILE(descriptor) LOCKED(path, REAL(ftruncate)(descriptor, length), "truncate", path, "", length, NULL, 0)
}
int ftruncate64(int descriptor, off_t length) { return ftruncate(descriptor, length); }
int fsync(int descriptor) {
    OF_A_FILE(descriptor) LOCKED(path, REAL(fsync)(descriptor), "sync", path, "", 0, NULL, 0)
}
int fdatasync(int descriptor) {
    OF_A_FILE(descriptor) LOCKED(path, REAL(fdatasync)(descriptor), "sync", path, "", 0, NULL, 0)
}

#define NAMED(descriptor, name) \
    char buffer[PATH_MAX];      \
    const char *path = folder_length ? path_of(descriptor, name, buffer) : "";
#define TWICE_NAMED(first, name, second, other_name) \
    NAMED(first, name)                               \
    char other_buffer[PATH_MAX];                     \
    const char *other = folder_length ? path_of(second, other_name, other_buffer) : "";

int truncate(const char *name, off_t length) {
    NAMED(AT_FDCWD, name) LOCKED(path, REAL(truncate)(name, length), "truncate", path, "", length, NULL, 0)
}
int truncate64(const char *name, off_t length) { return truncate(name, length); }
int mkdirat(int descriptor, const char *name, mode_t mode) {
    NAMED(descriptor, name) LOCKED(path, REAL(mkdirat)(descriptor, name, mode), "mkdir", path, "", 0, NULL, 0)
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
int unlinkat(int descriptor, const char *name, int flags) {
    NAMED(descriptor, name) LOCKED(path, REAL(unlinkat)(descriptor, name, flags), "remove", path, "", 0, NULL, 0)
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) { return !unlink(name) ? 0 : errno == EISDIR ? rmdir(name) : -1; }
int renameat2(int from, const char *name, int to, const char *other_name, unsigned flags) {
    TWICE_NAMED(from, name, to, other_name)
    LOCKED(path, REAL(renameat2)(from, name, to, other_name, flags), "rename", path, other, 0, NULL, 0)
}
int renameat(int from, const char *name, int to, const char *other) { return renameat2(from, name, to, other, 0); }
int rename(const char *name, const char *other) { return renameat2(AT_FDCWD, name, AT_FDCWD, other, 0); }
int linkat(int from, const char *name, int to, const char *other_name, int flags) {
    TWICE_NAMED(from, name, to, other_name)
    LOCKED(other, REAL(linkat)(from, name, to, other_name, flags), "link", path, other, 0, NULL, 0)
}
int link(const char *name, const char *other) { return linkat(AT_FDCWD, name, AT_FDCWD, other, 0); }
int symlinkat(const char *target, int descriptor, const char *name) {
    NAMED(descriptor, name) LOCKED(path, REAL(symlinkat)(target, descriptor, name), "symlink", path, target, 0, NULL, 0)
}
int symlink(const char *target, const char *name) { return symlinkat(target, AT_FDCWD, name); }
