/* A stand-in for libnvidia-ml.so.1: eight GPUs whose figures, processes and faults a text file scripts.

   The file is named by TRACKIO_STANDIN_NVML and is read again whenever it changes. One rule a line; DEVICE is an index:

     devices N                       how many there are (8)
     init CODE                       what nvmlInit returns
     DEVICE hidden [CGROUP]          its handle is refused (no permission), but for processes whose cgroup has that text
     DEVICE lost                     every call on it returns GPU_IS_LOST
     DEVICE reset                    it can be named, and every reading returns RESET_REQUIRED
     older                           the driver lacks what came with release 510
     DEVICE mig N                    it is cut into N instances
     DEVICE value NAME NUMBER        a gauge, by the names below
     DEVICE field ID NUMBER          a field value; `field ID none` is not supported
     DEVICE process PID BYTES SM     a process that computes on it; BYTES or SM may be `none`
     DEVICE xid CODE                 an event, reported once
     jitter                          gauges change by up to an eighth from call to call
     call FUNCTION error CODE        the function returns the code; or `hang`, `crash`, `sleep MILLISECONDS`

   Without a rule, device i says i-dependent figures that a test can compute (see `gauge`). Energy and traffic grow with
   the time at the rate of power and of i + 1 MB a second. The structures are those of pynvml. */

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10, FUNCTION_NOT_FOUND = 13, LOST = 15, RESET = 16 };
enum { MOST_RULES = 1024, MOST_DEVICES = 16, MOST_INSTANCES = 7 };

typedef struct { int index, instance; } Device; /* instance -1: the whole GPU */
typedef struct { int device; char verb[16], a[48], b[32], c[32]; } Rule;

static Device devices[MOST_DEVICES], instances[MOST_DEVICES][MOST_INSTANCES];
static Rule rules[MOST_RULES], *xid_told[MOST_RULES];
static int rule_count, registered;
static struct timespec read_at;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static void read_rules(void) {
    const char *path = getenv("TRACKIO_STANDIN_NVML");
    struct stat info;
    if (!path || stat(path, &info) || !memcmp(&info.st_mtim, &read_at, sizeof read_at)) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    char line[256];
    rule_count = 0;
    read_at = info.st_mtim;
    while (rule_count < MOST_RULES && fgets(line, sizeof line, file)) {
        Rule *r = &rules[rule_count];
        memset(r, 0, sizeof *r);
        r->device = -1;
        char *text = line;
        if (*text >= '0' && *text <= '9') r->device = (int)strtol(text, &text, 10);
        if (sscanf(text, "%15s %47s %31s %31s", r->verb, r->a, r->b, r->c) >= 1) rule_count++;
    }
    fclose(file);
}

static Rule *find(int device, const char *verb, const char *a) {
    pthread_mutex_lock(&lock);
    read_rules();
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < rule_count; i++)
        if (rules[i].device == device && !strcmp(rules[i].verb, verb) && (!a || !strcmp(rules[i].a, a))) return &rules[i];
    return NULL;
}

static int is_in_cgroup(const char *text) {
    char buffer[4096] = "";
    FILE *file = fopen("/proc/self/cgroup", "r");
    if (!file) return 0;
    buffer[fread(buffer, 1, sizeof buffer - 1, file)] = 0;
    fclose(file);
    return strstr(buffer, text) != NULL;
}

static int enter(Device *d, const char *function) {
    Rule *r = find(-1, "call", function);
    if (r && !strcmp(r->b, "error")) return atoi(r->c);
    if (r && !strcmp(r->b, "hang")) for (;;) pause();
    if (r && !strcmp(r->b, "crash")) raise(11);
    if (r && !strcmp(r->b, "sleep")) usleep((useconds_t)atoi(r->c) * 1000);
    if (d && find(d->index, "lost", NULL)) return LOST;
    int names = !strcmp(function, "nvmlDeviceGetUUID") || !strcmp(function, "nvmlDeviceGetName");
    if (d && !names && find(d->index, "reset", NULL)) return RESET;
    return OK;
}

#define ENTER(d) do { int code_ = enter(d, __func__); if (code_) return code_; } while (0)
#define WHOLE(d) do { if ((d)->instance >= 0) return UNSUPPORTED; } while (0)

static uint64_t gauge(Device *d, const char *name, uint64_t otherwise) {
    Rule *r = find(d->index, "value", name);
    uint64_t value = r ? strtoull(r->b, NULL, 10) : otherwise;
    return find(-1, "jitter", NULL) ? value - (uint64_t)rand() % (value / 8 + 1) : value;
}

static int is_none(Device *d, const char *name) {
    Rule *r = find(d->index, "value", name);
    return r && !strcmp(r->b, "none");
}

#define GAUGE(d, name, otherwise, out) do { ENTER(d); WHOLE(d); if (is_none(d, name)) return UNSUPPORTED; \
    *(out) = (unsigned)gauge(d, name, otherwise); return OK; } while (0)

static int count(void) {
    Rule *r = find(-1, "devices", NULL);
    int n = r ? atoi(r->a) : 8;
    return n > MOST_DEVICES ? MOST_DEVICES : n;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ENTER(NULL);
    for (int i = 0; i < MOST_DEVICES; i++) {
        devices[i] = (Device){i, -1};
        for (int k = 0; k < MOST_INSTANCES; k++) instances[i][k] = (Device){i, k};
    }
    Rule *r = find(-1, "init", NULL);
    return r ? atoi(r->a) : OK;
}

int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case LOST: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    case 9: return "Driver Not Loaded";
    default: return "An error of the stand-in";
    }
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "999.1"); return OK; }
int nvmlSystemGetNVMLVersion(char *text, unsigned size) { snprintf(text, size, "13.999.1"); return OK; }

int nvmlDeviceGetCount_v2(unsigned *n) { ENTER(NULL); *n = (unsigned)count(); return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) {
    ENTER(NULL);
    if ((int)index >= count()) return INVALID;
    Rule *r = find((int)index, "hidden", NULL);
    if (r && !(r->a[0] && is_in_cgroup(r->a))) return NO_PERMISSION;
    *out = &devices[index];
    return find((int)index, "lost", NULL) ? LOST : OK;
}

int nvmlDeviceGetUUID(Device *d, char *text, unsigned size) {
    ENTER(d);
    if (d->instance < 0) snprintf(text, size, "GPU-%08x-0000-4000-8000-000000000000", d->index);
    else snprintf(text, size, "MIG-%08x-%04x-4000-8000-000000000000", d->index, d->instance);
    return OK;
}

int nvmlDeviceGetName(Device *d, char *text, unsigned size) { ENTER(d); snprintf(text, size, "Stand-in 80GB"); return OK; }

int nvmlDeviceGetUtilizationRates(Device *d, unsigned out[2]) {
    ENTER(d);
    WHOLE(d);
    out[0] = (unsigned)gauge(d, "utilization", 10u * (unsigned)d->index + 5);
    out[1] = (unsigned)gauge(d, "memory_utilization", (unsigned)d->index + 1);
    return OK;
}

typedef struct { unsigned version; uint64_t total, reserved, free, used; } Memory;

int nvmlDeviceGetMemoryInfo_v2(Device *d, Memory *m) {
    ENTER(d);
    m->total = d->instance < 0 ? 80ull << 30 : 10ull << 30;
    m->used = gauge(d, "memory_used", (uint64_t)(d->index + 1) << 30);
    m->reserved = 1ull << 29;
    m->free = m->total - m->used - m->reserved;
    return OK;
}

typedef struct { unsigned version, sensor; int value; } Temperature;

int nvmlDeviceGetTemperatureV(Device *d, Temperature *t) {
    ENTER(d);
    WHOLE(d);
    t->value = (int)gauge(d, "temperature", 40u + (unsigned)d->index);
    return OK;
}
int nvmlDeviceGetTemperature(Device *d, unsigned sensor, unsigned *out) { (void)sensor; GAUGE(d, "temperature", 40u + (unsigned)d->index, out); }
int nvmlDeviceGetPowerUsage(Device *d, unsigned *out) { GAUGE(d, "power", 100000u + 10000u * (unsigned)d->index, out); }
int nvmlDeviceGetPowerManagementLimit(Device *d, unsigned *out) { GAUGE(d, "power_limit", 700000u, out); }
int nvmlDeviceGetClockInfo(Device *d, unsigned type, unsigned *out) { GAUGE(d, type == 2 ? "memory_clock" : "sm_clock", type == 2 ? 2619u : 1980u, out); }
int nvmlDeviceGetMaxClockInfo(Device *d, unsigned type, unsigned *out) { GAUGE(d, type == 2 ? "max_memory_clock" : "max_sm_clock", type == 2 ? 2619u : 1980u, out); }
int nvmlDeviceGetFanSpeed(Device *d, unsigned *out) { GAUGE(d, "fan", 30u, out); }
int nvmlDeviceGetPerformanceState(Device *d, unsigned *out) { GAUGE(d, "pstate", 0u, out); }

int nvmlDeviceGetPcieThroughput(Device *d, unsigned counter, unsigned *out) {
    (void)counter;
    ENTER(d);
    WHOLE(d);
    usleep(20000); /* the real one looks for 20 ms */
    *out = (unsigned)gauge(d, "pcie", 1024u);
    return OK;
}

typedef struct { uint32_t field, scope; int64_t time, latency; uint32_t type; int32_t code; union { double d; uint32_t i; uint64_t l; } value; } Field;

int nvmlDeviceGetFieldValues(Device *d, int n, Field *fields) {
    ENTER(d);
    WHOLE(d);
    uint64_t us = now_us(), seconds_ms = us / 1000;
    for (int i = 0; i < n; i++) {
        Field *f = &fields[i];
        char id[16];
        snprintf(id, sizeof id, "%u", f->field);
        Rule *r = find(d->index, "field", id);
        f->time = (int64_t)us;
        f->type = 3; /* unsigned long long */
        f->code = r && !strcmp(r->b, "none") ? UNSUPPORTED : OK;
        if (r) { f->value.l = strtoull(r->b, NULL, 10); continue; }
        switch (f->field) {
        case 82: f->value.l = 50u + (unsigned)d->index; break;
        case 83: f->value.l = (100000u + 10000u * (unsigned)d->index) * (seconds_ms % 100000000u) / 1000u; break;
        case 197: case 198: f->value.l = (uint64_t)(d->index + 1) * us; break; /* i + 1 MB a second */
        case 138: case 139: f->value.l = (uint64_t)(d->index + 1) * us / 1024u; break;
        default: f->value.l = 0;
        }
    }
    return OK;
}

typedef struct { unsigned pid; uint64_t memory; unsigned gpu_instance, compute_instance; } Process;

static int running(Device *d, unsigned *n, Process *out, const char *verb) {
    unsigned found = 0;
    find(-1, "", NULL);
    for (int i = 0; i < rule_count; i++) {
        Rule *r = &rules[i];
        if (r->device != d->index || strcmp(r->verb, verb)) continue;
        if (out && found < *n) {
            int has = strcmp(r->b, "none");
            out[found] = (Process){(unsigned)atoi(r->a), has ? strtoull(r->b, NULL, 10) : ~0ull, ~0u, ~0u};
        }
        found++;
    }
    int code = found && (!out || found > *n) ? TOO_SMALL : OK;
    *n = found;
    return code;
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device *d, unsigned *n, Process *out) { ENTER(d); return running(d, n, out, "process"); }
int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *n, Process *out) { ENTER(d); return find(-1, "older", NULL) ? FUNCTION_NOT_FOUND : running(d, n, out, "process"); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *d, unsigned *n, Process *out) { ENTER(d); return running(d, n, out, "graphics"); }

typedef struct { unsigned pid; uint64_t time; unsigned sm, memory, encoder, decoder; } Utilization;

int nvmlDeviceGetProcessUtilization(Device *d, Utilization *out, unsigned *n, uint64_t since) {
    ENTER(d);
    WHOLE(d);
    (void)since;
    unsigned found = 0;
    find(-1, "", NULL);
    for (int i = 0; i < rule_count; i++) {
        Rule *r = &rules[i];
        if (r->device != d->index || strcmp(r->verb, "process") || !r->c[0] || !strcmp(r->c, "none")) continue;
        if (out && found < *n) out[found] = (Utilization){(unsigned)atoi(r->a), now_us(), (unsigned)atoi(r->c), 1, 0, 0};
        found++;
    }
    if (!found) return NOT_FOUND;
    int code = !out || found > *n ? TOO_SMALL : OK;
    *n = found;
    return code;
}

static int mig(Device *d) {
    Rule *r = d->instance < 0 ? find(d->index, "mig", NULL) : NULL;
    return r ? atoi(r->a) : 0;
}

int nvmlDeviceGetMigMode(Device *d, unsigned *current, unsigned *pending) { ENTER(d); *current = *pending = mig(d) > 0; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *n) { ENTER(d); *n = mig(d) ? MOST_INSTANCES : 0; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned index, Device **out) {
    ENTER(d);
    if ((int)index >= mig(d)) return NOT_FOUND;
    *out = &instances[d->index][index];
    return OK;
}
int nvmlDeviceGetGpuInstanceId(Device *d, unsigned *out) { ENTER(d); *out = (unsigned)d->instance + 1; return OK; }
int nvmlDeviceGetComputeInstanceId(Device *d, unsigned *out) { ENTER(d); *out = 0; return OK; }

int nvmlEventSetCreate(void **set) { ENTER(NULL); *set = &registered; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(Device *d, uint64_t types, void *set) { (void)types; (void)set; ENTER(d); registered |= 1 << d->index; return OK; }

typedef struct { Device *device; uint64_t type, data; unsigned gpu_instance, compute_instance; } Event;

int nvmlEventSetWait_v2(void *set, Event *event, unsigned timeout_ms) {
    (void)set;
    ENTER(NULL);
    for (unsigned waited = 0; ; waited += 200) {
        find(-1, "", NULL);
        for (int i = 0; i < rule_count; i++) {
            Rule *r = &rules[i];
            if (strcmp(r->verb, "xid") || r->device < 0 || !(registered & 1 << r->device) || xid_told[i]) continue;
            xid_told[i] = r;
            *event = (Event){&devices[r->device], 8, strtoull(r->a, NULL, 10), ~0u, ~0u};
            return OK;
        }
        if (waited >= timeout_ms) return TIMEOUT;
        usleep(200000);
    }
}
