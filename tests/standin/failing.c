/* Make chosen libc calls fail or hang, in chosen processes, while they run.

   Goes into LD_PRELOAD. TRACKIO_TEST_FAILING names the control file that tests/failing.py writes: `struct control`
   below. It is mapped and shared, so that rules come and go at once, without a system call, also in forked processes,
   and so that all processes count down one number. Looking for a rule makes system calls only where one names a path.
   What glibc calls inside itself is not seen; Python, SQLite and ZeroMQ call it from outside.
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define RULES 64

/* the order of CALLS in tests/failing.py */
enum call {
    OPEN, READ, WRITE, FSYNC, STAT, UNLINK, RENAME, LISTDIR, MKDIR, LINK, TRUNCATE, FALLOCATE, MMAP, FORK, THREAD,
    ACCEPT, SOCKET, CONNECT, FCNTL, FLOCK, IOCTL, PIPE, EVENT, DUP
};

struct rule {
    uint32_t call;
    int32_t error;            /* 0: the call is made, after the pause */
    int64_t pause_ms;
    _Atomic int64_t after;    /* so many calls pass first */
    _Atomic int64_t count;    /* so many are caught; below 0: all */
    _Atomic uint64_t hits;
    char path[256];           /* part of the path, or "" */
    char process[216];        /* part of the command line, or "" */
};
_Static_assert(sizeof(struct rule) == 512, "as tests/failing.py has it");

struct control {
    _Atomic uint64_t active;  /* a bit for each rule */
    char padding[504];
    struct rule rules[RULES];
};

static struct control *control;
static char command_line[65536];

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("TRACKIO_TEST_FAILING");
    if (control != NULL || path == NULL) return;
    int before = errno;
    long file = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    long size = file < 0 ? 0 : syscall(SYS_read, file, command_line, sizeof command_line - 1);
    for (long i = 0; i < size; i++) if (command_line[i] == 0) command_line[i] = ' ';
    if (file >= 0) syscall(SYS_close, file);
    file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (file >= 0) {
        long at = syscall(SYS_mmap, NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (at > 0 || at < -4095) control = (struct control *)at;
        syscall(SYS_close, file);
    }
    errno = before;
}

/* Where a name relative to a descriptor lies; name NULL or "": what the descriptor is. */
static void find_path(char *out, size_t size, int descriptor, const char *name) {
    out[0] = 0;
    size_t length = 0;
    if (name == NULL || name[0] != '/') {
        char link[64] = "/proc/self/cwd";
        if (descriptor != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        long got = syscall(SYS_readlinkat, AT_FDCWD, link, out, size - 1);
        length = got < 0 ? 0 : (size_t)got;
        out[length] = 0;
        if (name == NULL || name[0] == 0) return;
        if (length + 1 < size) out[length++] = '/';
    }
    snprintf(out + length, size - length, "%s", name);
}

static void pause_while(int index, int64_t milliseconds) {
    for (int64_t passed = 0; passed < milliseconds; passed += 10) {
        if ((atomic_load(&control->active) >> index & 1) == 0) return;
        struct timespec wait = {0, 10 * 1000 * 1000};
        syscall(SYS_nanosleep, &wait, NULL);
    }
}

/* Say whether a call fails, with errno set; pause it first where a rule wants that. */
static int fails2(enum call call, int descriptor, const char *name, int descriptor2, const char *name2) {
    uint64_t active = control == NULL ? 0 : atomic_load_explicit(&control->active, memory_order_acquire);
    if (active == 0) return 0;
    int before = errno, error = 0;
    char path[4096], path2[4096];
    int known = 0;
    for (int index = 0; index < RULES && error == 0; index++) {
        struct rule *rule = &control->rules[index];
        if ((active >> index & 1) == 0 || rule->call != (uint32_t)call) continue;
        if (rule->process[0] && strstr(command_line, rule->process) == NULL) continue;
        if (rule->path[0]) {
            if (!known) {
                find_path(path, sizeof path, descriptor, name);
                path2[0] = 0;
                if (name2 != NULL) find_path(path2, sizeof path2, descriptor2, name2);
                known = 1;
            }
            if (strstr(path, rule->path) == NULL && strstr(path2, rule->path) == NULL) continue;
        }
        if (atomic_load(&rule->after) > 0 && atomic_fetch_sub(&rule->after, 1) > 0) continue;
        if (atomic_load(&rule->count) >= 0 && atomic_fetch_sub(&rule->count, 1) <= 0) {
            atomic_store(&rule->count, 0);
            continue;
        }
        atomic_fetch_add(&rule->hits, 1);
        pause_while(index, rule->pause_ms);
        error = rule->error;
    }
    errno = error ? error : before;
    return error;
}

static int fails(enum call call, int descriptor, const char *name) { return fails2(call, descriptor, name, 0, NULL); }
static int fails_at(enum call call, const char *name) { return fails2(call, AT_FDCWD, name, 0, NULL); }

/* NEXT(open) is libc's own, found once. */
#define NEXT(name) ({ \
    static __typeof__(&name) next; \
    if (next == NULL) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
    next; })

/* -- open ------------------------------------------------------------------------------------------------ */

static mode_t mode_of(int flags, va_list arguments) {
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, mode_t) : 0;
}

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = mode_of(flags, more); va_end(more); \
        return fails_at(OPEN, path) ? -1 : NEXT(name)(path, flags, mode); }
#define OPENS_AT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = mode_of(flags, more); va_end(more); \
        return fails(OPEN, folder, path) ? -1 : NEXT(name)(folder, path, flags, mode); }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)
/* what programs call that were built with _FORTIFY_SOURCE */
int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }
int __openat_2(int folder, const char *path, int flags) { return openat(folder, path, flags); }
int __openat64_2(int folder, const char *path, int flags) { return openat64(folder, path, flags); }
int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
FILE *fopen(const char *path, const char *mode) { return fails_at(OPEN, path) ? NULL : NEXT(fopen)(path, mode); }
FILE *fopen64(const char *path, const char *mode) { return fails_at(OPEN, path) ? NULL : NEXT(fopen64)(path, mode); }

/* -- read and write ---------------------------------------------------------------------------------------- */

#define MOVES(call, name, buffer) \
    ssize_t name(int file, buffer data, size_t size) { \
        return fails(call, file, NULL) ? -1 : NEXT(name)(file, data, size); }
#define MOVES_AT(call, name, buffer, offset_type) \
    ssize_t name(int file, buffer data, size_t size, offset_type offset) { \
        return fails(call, file, NULL) ? -1 : NEXT(name)(file, data, size, offset); }
#define MOVES_PARTS(call, name) \
    ssize_t name(int file, const struct iovec *parts, int count) { \
        return fails(call, file, NULL) ? -1 : NEXT(name)(file, parts, count); }
#define MOVES_PARTS_AT(call, name, offset_type) \
    ssize_t name(int file, const struct iovec *parts, int count, offset_type offset) { \
        return fails(call, file, NULL) ? -1 : NEXT(name)(file, parts, count, offset); }
MOVES(READ, read, void *)
MOVES_AT(READ, pread, void *, off_t)
MOVES_AT(READ, pread64, void *, off64_t)
MOVES_PARTS(READ, readv)
MOVES_PARTS_AT(READ, preadv, off_t)
MOVES_PARTS_AT(READ, preadv64, off64_t)
ssize_t __read_chk(int file, void *data, size_t size, size_t room) { (void)room; return read(file, data, size); }
ssize_t __pread_chk(int file, void *data, size_t size, off_t offset, size_t room) {
    (void)room;
    return pread(file, data, size, offset);
}
ssize_t __pread64_chk(int file, void *data, size_t size, off64_t offset, size_t room) {
    (void)room;
    return pread64(file, data, size, offset);
}
MOVES(WRITE, write, const void *)
MOVES_AT(WRITE, pwrite, const void *, off_t)
MOVES_AT(WRITE, pwrite64, const void *, off64_t)
MOVES_PARTS(WRITE, writev)
MOVES_PARTS_AT(WRITE, pwritev, off_t)
MOVES_PARTS_AT(WRITE, pwritev64, off64_t)

static int copy_fails(int to, int from) { return fails(READ, from, NULL) || fails(WRITE, to, NULL); }

ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    return copy_fails(to, from) ? -1 : NEXT(sendfile)(to, from, offset, size);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) {
    return copy_fails(to, from) ? -1 : NEXT(sendfile64)(to, from, offset, size);
}
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags) {
    return copy_fails(to, from) ? -1 : NEXT(copy_file_range)(from, at, to, to_at, size, flags);
}
int fsync(int file) { return fails(FSYNC, file, NULL) ? -1 : NEXT(fsync)(file); }
int fdatasync(int file) { return fails(FSYNC, file, NULL) ? -1 : NEXT(fdatasync)(file); }
int ftruncate(int file, off_t size) { return fails(TRUNCATE, file, NULL) ? -1 : NEXT(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { return fails(TRUNCATE, file, NULL) ? -1 : NEXT(ftruncate64)(file, size); }
int truncate(const char *path, off_t size) { return fails_at(TRUNCATE, path) ? -1 : NEXT(truncate)(path, size); }
int truncate64(const char *path, off64_t size) { return fails_at(TRUNCATE, path) ? -1 : NEXT(truncate64)(path, size); }
/* these two return the error */
int posix_fallocate(int file, off_t offset, off_t size) {
    int error = fails(FALLOCATE, file, NULL);
    return error ? error : NEXT(posix_fallocate)(file, offset, size);
}
int posix_fallocate64(int file, off64_t offset, off64_t size) {
    int error = fails(FALLOCATE, file, NULL);
    return error ? error : NEXT(posix_fallocate64)(file, offset, size);
}
int fallocate(int file, int mode, off_t offset, off_t size) {
    return fails(FALLOCATE, file, NULL) ? -1 : NEXT(fallocate)(file, mode, offset, size);
}
int fallocate64(int file, int mode, off64_t offset, off64_t size) {
    return fails(FALLOCATE, file, NULL) ? -1 : NEXT(fallocate64)(file, mode, offset, size);
}
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    return fails(MMAP, file, NULL) ? MAP_FAILED : NEXT(mmap)(at, size, protection, flags, file, offset);
}
void *mmap64(void *at, size_t size, int protection, int flags, int file, off64_t offset) {
    return fails(MMAP, file, NULL) ? MAP_FAILED : NEXT(mmap64)(at, size, protection, flags, file, offset);
}

/* -- stat ---------------------------------------------------------------------------------------------------- */

#define STATS(name, type) \
    int name(const char *path, struct type *out) { return fails_at(STAT, path) ? -1 : NEXT(name)(path, out); }
STATS(stat, stat)
STATS(stat64, stat64)
STATS(lstat, stat)
STATS(lstat64, stat64)
int fstat(int file, struct stat *out) { return fails(STAT, file, NULL) ? -1 : NEXT(fstat)(file, out); }
int fstat64(int file, struct stat64 *out) { return fails(STAT, file, NULL) ? -1 : NEXT(fstat64)(file, out); }
int fstatat(int folder, const char *path, struct stat *out, int flags) {
    return fails(STAT, folder, path) ? -1 : NEXT(fstatat)(folder, path, out, flags);
}
int fstatat64(int folder, const char *path, struct stat64 *out, int flags) {
    return fails(STAT, folder, path) ? -1 : NEXT(fstatat64)(folder, path, out, flags);
}
int statx(int folder, const char *restrict path, int flags, unsigned mask, struct statx *restrict out) {
    return fails(STAT, folder, path) ? -1 : NEXT(statx)(folder, path, flags, mask, out);
}
/* what programs call that were built for a glibc before 2.33 */
static int stat_now(int folder, const char *path, void *out, int flags) {
    return fails(STAT, folder, path) ? -1 : (int)syscall(SYS_newfstatat, folder, path, out, flags);
}
#define OLD_STATS(suffix) \
    int __xstat##suffix(int version, const char *path, void *out) { \
        (void)version; return stat_now(AT_FDCWD, path, out, 0); } \
    int __lxstat##suffix(int version, const char *path, void *out) { \
        (void)version; return stat_now(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW); } \
    int __fxstat##suffix(int version, int file, void *out) { \
        (void)version; return stat_now(file, "", out, AT_EMPTY_PATH); } \
    int __fxstatat##suffix(int version, int folder, const char *path, void *out, int flags) { \
        (void)version; return stat_now(folder, path, out, flags); }
OLD_STATS()
OLD_STATS(64)
int access(const char *path, int mode) { return fails_at(STAT, path) ? -1 : NEXT(access)(path, mode); }
int faccessat(int folder, const char *path, int mode, int flags) {
    return fails(STAT, folder, path) ? -1 : NEXT(faccessat)(folder, path, mode, flags);
}

/* -- names --------------------------------------------------------------------------------------------------- */

int unlink(const char *path) { return fails_at(UNLINK, path) ? -1 : NEXT(unlink)(path); }
int unlinkat(int folder, const char *path, int flags) {
    return fails(UNLINK, folder, path) ? -1 : NEXT(unlinkat)(folder, path, flags);
}
int rmdir(const char *path) { return fails_at(UNLINK, path) ? -1 : NEXT(rmdir)(path); }
int rename(const char *from, const char *to) {
    return fails2(RENAME, AT_FDCWD, from, AT_FDCWD, to) ? -1 : NEXT(rename)(from, to);
}
int renameat(int folder, const char *from, int folder2, const char *to) {
    return fails2(RENAME, folder, from, folder2, to) ? -1 : NEXT(renameat)(folder, from, folder2, to);
}
int renameat2(int folder, const char *from, int folder2, const char *to, unsigned flags) {
    return fails2(RENAME, folder, from, folder2, to) ? -1 : NEXT(renameat2)(folder, from, folder2, to, flags);
}
int link(const char *from, const char *to) {
    return fails2(LINK, AT_FDCWD, from, AT_FDCWD, to) ? -1 : NEXT(link)(from, to);
}
int linkat(int folder, const char *from, int folder2, const char *to, int flags) {
    return fails2(LINK, folder, from, folder2, to) ? -1 : NEXT(linkat)(folder, from, folder2, to, flags);
}
int symlink(const char *from, const char *to) {
    return fails2(LINK, AT_FDCWD, from, AT_FDCWD, to) ? -1 : NEXT(symlink)(from, to);
}
int mkdir(const char *path, mode_t mode) { return fails_at(MKDIR, path) ? -1 : NEXT(mkdir)(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) {
    return fails(MKDIR, folder, path) ? -1 : NEXT(mkdirat)(folder, path, mode);
}
DIR *opendir(const char *path) { return fails_at(LISTDIR, path) ? NULL : NEXT(opendir)(path); }
DIR *fdopendir(int folder) { return fails(LISTDIR, folder, NULL) ? NULL : NEXT(fdopendir)(folder); }
struct dirent *readdir(DIR *folder) { return fails(LISTDIR, dirfd(folder), NULL) ? NULL : NEXT(readdir)(folder); }
struct dirent64 *readdir64(DIR *folder) { return fails(LISTDIR, dirfd(folder), NULL) ? NULL : NEXT(readdir64)(folder); }

/* -- processes and threads --------------------------------------------------------------------------------------- */

pid_t fork(void) { return fails_at(FORK, "") ? -1 : NEXT(fork)(); }
/* The real vfork cannot be called from here: its child would return on our stack frame. */
pid_t vfork(void) { return fork(); }
#define SPAWNS(name) \
    int name(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, \
             const posix_spawnattr_t *attributes, char *const arguments[], char *const environment[]) { \
        int error = fails_at(FORK, path); \
        return error ? error : NEXT(name)(pid, path, actions, attributes, arguments, environment); }
SPAWNS(posix_spawn)
SPAWNS(posix_spawnp)
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *), void *argument) {
    int error = fails_at(THREAD, "");
    return error ? error : NEXT(pthread_create)(thread, attributes, function, argument);
}

/* -- descriptors that are not files -------------------------------------------------------------------------------- */

static int socket_fails(enum call call, const struct sockaddr *address, socklen_t size) {
    char path[sizeof(struct sockaddr_un) + 1] = "/";
    if (address != NULL && size > offsetof(struct sockaddr_un, sun_path) && address->sa_family == AF_UNIX) {
        size_t length = size - offsetof(struct sockaddr_un, sun_path);
        if (length > sizeof path - 1) length = sizeof path - 1;
        memcpy(path, ((const struct sockaddr_un *)address)->sun_path, length);
        path[length] = 0;
    }
    return fails_at(call, path);
}
static int accept_fails(int file) {
    struct sockaddr_un address = {0};
    socklen_t size = sizeof address;
    if (control == NULL || atomic_load(&control->active) == 0) return 0;
    int before = errno;
    if (syscall(SYS_getsockname, file, &address, &size) != 0) size = 0;
    errno = before;
    return socket_fails(ACCEPT, (struct sockaddr *)&address, size < sizeof address ? size : sizeof address);
}
int accept(int file, struct sockaddr *address, socklen_t *size) {
    return accept_fails(file) ? -1 : NEXT(accept)(file, address, size);
}
int accept4(int file, struct sockaddr *address, socklen_t *size, int flags) {
    return accept_fails(file) ? -1 : NEXT(accept4)(file, address, size, flags);
}
int connect(int file, const struct sockaddr *address, socklen_t size) {
    return socket_fails(CONNECT, address, size) ? -1 : NEXT(connect)(file, address, size);
}
int socket(int domain, int type, int protocol) {
    return fails_at(SOCKET, "") ? -1 : NEXT(socket)(domain, type, protocol);
}
int socketpair(int domain, int type, int protocol, int files[2]) {
    return fails_at(SOCKET, "") ? -1 : NEXT(socketpair)(domain, type, protocol, files);
}
int pipe(int files[2]) { return fails_at(PIPE, "") ? -1 : NEXT(pipe)(files); }
int pipe2(int files[2], int flags) { return fails_at(PIPE, "") ? -1 : NEXT(pipe2)(files, flags); }
int eventfd(unsigned value, int flags) { return fails_at(EVENT, "") ? -1 : NEXT(eventfd)(value, flags); }
int epoll_create(int size) { return fails_at(EVENT, "") ? -1 : NEXT(epoll_create)(size); }
int epoll_create1(int flags) { return fails_at(EVENT, "") ? -1 : NEXT(epoll_create1)(flags); }
int memfd_create(const char *name, unsigned flags) { return fails_at(OPEN, name) ? -1 : NEXT(memfd_create)(name, flags); }
int dup(int file) { return fails(DUP, file, NULL) ? -1 : NEXT(dup)(file); }
int dup2(int file, int to) { return fails(DUP, file, NULL) ? -1 : NEXT(dup2)(file, to); }
int dup3(int file, int to, int flags) { return fails(DUP, file, NULL) ? -1 : NEXT(dup3)(file, to, flags); }
int flock(int file, int operation) { return fails(FLOCK, file, NULL) ? -1 : NEXT(flock)(file, operation); }

/* their one argument, number or pointer, goes through one register */
#define CONTROLS(group, name, request_type) \
    int name(int file, request_type request, ...) { \
        va_list more; va_start(more, request); void *argument = va_arg(more, void *); va_end(more); \
        return fails(group, file, NULL) ? -1 : NEXT(name)(file, request, argument); }
#define FCNTL_OR_DUP (request == F_DUPFD || request == F_DUPFD_CLOEXEC ? DUP : FCNTL)
CONTROLS(FCNTL_OR_DUP, fcntl, int)
CONTROLS(FCNTL_OR_DUP, fcntl64, int)
CONTROLS(IOCTL, ioctl, unsigned long)
