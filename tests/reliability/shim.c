/* Preloaded into the real server and writer, it ends the process at, or fails, a marked system call.
 *
 * SHIM_RULES: rules separated by `;`, each `CALL PART ACTION COUNT`: the COUNT-th CALL (write, fsync, rename, unlink or
 * truncate, with their kin) on a path that contains PART does ACTION: `before`, `after` (SIGKILL around the call),
 * `half` (half of a write, then SIGKILL), or an errno by number, which all further ones return as well.
 * SHIM_SWITCH: where it is set, rules count only while the file that it names exists.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 8 };

static struct rule {
    char call[16], part[128], action[16];
    atomic_int left;
} rules[MOST];
static int count;
static const char *enabled_by;

__attribute__((constructor)) static void read_rules(void) {
    const char *text = getenv("SHIM_RULES");
    int left;
    enabled_by = getenv("SHIM_SWITCH");
    for (; text && count < MOST; text = strchr(text, ';'), text = text ? text + 1 : NULL) {
        struct rule *r = &rules[count];
        if (sscanf(text, "%15s %127s %15s %d", r->call, r->part, r->action, &left) == 4) {
            r->left = left;
            count++;
        }
    }
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* The action due for this call, or NULL. */
static const char *due(const char *call, const char *path, const char *other) {
    for (struct rule *r = rules; r < rules + count; r++) {
        if (strcmp(r->call, call) || !(strstr(path, r->part) || (other && strstr(other, r->part)))) continue;
        if (enabled_by && access(enabled_by, F_OK)) continue;
        int left = atomic_fetch_sub(&r->left, 1);
        int fails = atoi(r->action) != 0;
        if (left == 1 || (fails && left < 1)) return r->action;
    }
    return NULL;
}

static const char *due_fd(const char *call, int fd) {
    char link[32], path[4096];
    if (!count) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int saved = errno;
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (n < 0) return NULL;
    path[n] = 0;
    return due(call, path, NULL);
}

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

#define AROUND(action, call)                                \
    do {                                                    \
        const char *a = (action);                           \
        if (a && atoi(a)) { errno = atoi(a); return -1; }   \
        if (a && strcmp(a, "after")) die();                 \
        __typeof__(call) result = (call);                   \
        if (a) die();                                       \
        return result;                                      \
    } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    const char *action = due_fd("write", fd);
    if (action && !strcmp(action, "half")) {
        if (REAL(write)(fd, data, size / 2) >= 0) die();
    }
    AROUND(action, REAL(write)(fd, data, size));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    const char *action = due_fd("write", fd);
    if (action && !strcmp(action, "half")) {
        if (REAL(pwrite64)(fd, data, size / 2, at) >= 0) die();
    }
    AROUND(action, REAL(pwrite64)(fd, data, size, at));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }

int fsync(int fd) { AROUND(due_fd("fsync", fd), REAL(fsync)(fd)); }

int fdatasync(int fd) { AROUND(due_fd("fsync", fd), REAL(fdatasync)(fd)); }

int ftruncate64(int fd, off64_t size) { AROUND(due_fd("truncate", fd), REAL(ftruncate64)(fd, size)); }

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int rename(const char *from, const char *to) { AROUND(due("rename", from, to), REAL(rename)(from, to)); }

int unlink(const char *path) { AROUND(due("unlink", path, NULL), REAL(unlink)(path)); }

int remove(const char *path) { AROUND(due("unlink", path, NULL), REAL(remove)(path)); }
